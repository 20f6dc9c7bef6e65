"""Converters: published forms of benchmarks -> the files that `eval.tasks` reads."""
