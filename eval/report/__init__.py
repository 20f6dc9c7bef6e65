"""Reports on finished evaluations: tables, plots and one HTML page (`python -m eval.report`)."""
