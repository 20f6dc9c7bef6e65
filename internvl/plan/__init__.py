"""Estimate of a job from its sizes: memory, work, messages and time (`python -m internvl.plan`)."""
