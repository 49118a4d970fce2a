"""A run's folder: written, read, shown and compared."""
