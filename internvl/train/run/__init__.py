"""A run: what it was, what became of it, what it reports."""
