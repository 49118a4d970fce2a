"""A finished run as a detector: a folder that can be copied, and a judge of new images."""
