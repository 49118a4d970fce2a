"""Tells what a run would find and need before it begins; nothing is encoded, downloaded or written."""
