"""Tables and figures of scripts/miniature_study.sh (`python -m eval.study`)."""
