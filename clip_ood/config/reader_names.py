"""The readers that configs name by a word."""

READERS = {  # as configs name them -> class path
    "npz": "clip_ood.data.readers.npz.Npz",
}


def class_path(reader: str) -> str:
    """The class path that a word, or a class path itself, stands for.

    >>> class_path("npz"), class_path("my_module.Mine")
    ('clip_ood.data.readers.npz.Npz', 'my_module.Mine')
    """
    return READERS.get(reader, reader)
