"""Conducts experiments from config to table: the run's folder, missing features, training, evaluation."""
