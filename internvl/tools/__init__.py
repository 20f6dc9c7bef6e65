"""Commands that make, check or convert checkpoints and data."""
