"""Attacks on a run's detectors: images moved onto ID features, and what every score says of them."""
