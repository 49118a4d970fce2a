"""Finds the images of a set and reads them from their source."""
