"""Makes tables and figures over many runs."""
