"""A run: its state and record, signals that stop it, counts and metrics that it reports."""
