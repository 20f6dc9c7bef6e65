"""Training: arguments, trainer, checkpoints, entry point."""
