"""The evaluation suite's own machinery; a benchmark plugs in as one `Task` and needs nothing else."""
