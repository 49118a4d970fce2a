"""Out-of-distribution detection with pretrained image-text encoders: the science, free of Lightning.

Importing this package, or the list of detector names, imports nothing heavy: command-line errors answer at once.
"""
