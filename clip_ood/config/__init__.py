"""The keys of configs: a schema that explains each key, loading, checks, and the named image sets."""
