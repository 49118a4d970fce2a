"""What people decide about a run's images.

`decisions.py` says which of several decisions counts, and `decisions_file.py` reads and appends to decisions.csv.
"""
