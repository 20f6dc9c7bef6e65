"""Parallelism: which rank holds what, and what ranks send each other."""
