"""Checkpoints: written whole or not at all, continued on any number of ranks."""
