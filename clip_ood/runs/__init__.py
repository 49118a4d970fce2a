"""Writes, reads, shows and compares the folders of runs."""
