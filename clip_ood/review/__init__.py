"""What people decide about a run's images.

`decisions.py` says which of several decisions counts, `decisions_file.py` reads and appends to decisions.csv, and `drawn.py` states the
share of odd images from those that were drawn at random.
"""
