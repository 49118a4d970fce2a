"""Answers for a whole folder of images: which of them do not belong, which are copies, and which groups lie apart.

`principal.py` gives the space in which images are compared, `spanning_tree.py` links them, `groups.py` finds groups that lie apart,
`density.py` compares each image's surroundings with those of its neighbours, `consensus.py` joins scores by their ranks, and
`ranking.py` joins all of this to one score. `copy_groups.py` gathers copies, `neighbours.py` finds the nearest images that are none, and
`labels.py` the labels that these speak against. `suspects.py` makes the rows of suspects.csv and groups.csv, `files.py` writes and
reads these and labels.csv, and `embeddings.py` writes everything to a Parquet file for other programs.
"""
