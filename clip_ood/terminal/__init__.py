"""Shows text and tables to people."""
