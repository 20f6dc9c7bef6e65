"""Evaluation in five steps with five names: record -> prompt -> answer -> score -> aggregate."""

import internvl  # noqa: F401  # answers Ctrl-C while a command is imported, and finds modules of the public code
