"""Estimate of a training or inference job: memory, work, messages and time from sizes (`python -m internvl.tools.plan`)."""
