"""Texts and images to hide needles in."""
