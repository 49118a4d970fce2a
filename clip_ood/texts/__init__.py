"""Turns names, words and prompts into text embeddings' prototypes and labels."""
