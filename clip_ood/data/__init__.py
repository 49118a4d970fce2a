"""Image sets: what there is, read from where it lies."""
