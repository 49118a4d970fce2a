"""Chooses names, words and prompts, and turns their embeddings into prototypes, negative labels and pseudo-labels."""
