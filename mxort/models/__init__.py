"""Checkpoints of language models in, folders that run out."""
