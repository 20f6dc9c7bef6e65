"""Evaluation in five steps with five names: record -> prompt -> answer -> score -> aggregate."""

import internvl  # noqa: F401  (finds modules of the public code, in eval as well)
