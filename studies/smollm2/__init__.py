"""The questions of the miniature study, asked of a real language model (studies/smollm2/run.sh)."""
