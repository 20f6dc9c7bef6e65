"""Checkpoints of a run: what they hold, how they are written, which one is resumed, on how many ranks."""
