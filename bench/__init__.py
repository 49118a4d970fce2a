"""Measured against bare loops and naive code, as ratios in one run: `make bench`, or one file: `python -m bench.rmd`."""
