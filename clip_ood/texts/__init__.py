"""Names, words and prompts, and what a text encoder makes of them."""
