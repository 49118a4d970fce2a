"""Files and folders that lie in buckets or behind URLs, read through fsspec."""
