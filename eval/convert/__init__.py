"""Published forms of benchmarks -> the files that `eval.tasks` read."""
