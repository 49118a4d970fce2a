"""Runs a process beside others, and ends it cleanly."""
