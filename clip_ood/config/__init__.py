"""The keys of configs: a schema that explains each, loading, checks, and the named image sets."""
