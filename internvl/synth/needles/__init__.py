"""Needles in long contexts: retrieval, counting and reasoning over any corpus."""
