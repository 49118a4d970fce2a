"""Finds images that are in two sets, or twice in one: what is scored must not be what was learnt from.

`exact.py` finds copies by their content, and `near.py` finds those that were resized, saved anew or mirrored, which `thumbnails.py`
compares. `duplicates.py` chooses the images to take out, `leaks_file.py` names all copies, and `told.py` counts them in words.
"""
