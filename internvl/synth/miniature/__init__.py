"""Data sets that a CPU can train on, made of what Python packages ship."""
