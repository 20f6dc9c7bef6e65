"""Texts and images to hide questions in."""
