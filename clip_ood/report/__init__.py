"""Writes pages about runs: report.html of a run, and a page of several runs side by side."""
