"""Pages about runs: report.html of a run, and of several side by side."""
