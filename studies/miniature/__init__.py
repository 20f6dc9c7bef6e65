"""Tables and figures of studies/miniature/run.sh (`python -m studies.miniature`)."""
