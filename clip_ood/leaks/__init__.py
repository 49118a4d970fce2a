"""Images that stand in two sets, or twice in one: what is scored must not be what was learnt from.

`exact.py` finds copies by their content, `near.py` those that were resized, saved anew or mirrored, which `thumbnails.py` compares;
`duplicates.py` says which images to take out, `leaks_file.py` names all of them, and `told.py` counts them in words.
"""
