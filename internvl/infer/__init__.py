"""Answering with a trained model: load once, ask many questions."""
