"""Evaluation in five steps with five names: record -> prompt -> answer -> score -> aggregate."""

import internvl  # noqa: F401  # says `interrupted` where Ctrl-C arrives while a command is imported
