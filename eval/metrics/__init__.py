"""Scoring rules of the benchmarks as pure functions: an answer and a response in, a number out."""
