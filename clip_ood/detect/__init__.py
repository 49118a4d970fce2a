"""A finished run as a detector: a folder that can be copied, and a predictor that judges new images with it."""
