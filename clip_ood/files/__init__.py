"""Reads, downloads and writes files."""
