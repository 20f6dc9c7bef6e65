"""Evaluation in five steps with five names: record -> prompt -> answer -> score -> aggregate."""
