"""Makers of data sets: long contexts for training and testing, from real pictures and texts that packages ship."""
