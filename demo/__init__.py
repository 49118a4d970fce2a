"""The demo: a small real encoder and real image folders, built from published packages, nothing trained."""
