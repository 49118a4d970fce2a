"""Builds the demo: a small real encoder and real image folders, from published packages, with nothing trained."""
