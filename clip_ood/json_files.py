"""JSON files of whoever wrote them: of a size that can be read, and nested no deeper than that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from clip_ood.text_files import read_text

LARGEST = 1 << 26  # bytes


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises: ValueError for what is no JSON, no text, too large or too deep; OSError for a file that cannot be read.
    """
    try:
        return json.loads(read_text(path, LARGEST))
    except RecursionError:
        raise ValueError("its lists and mappings lie too deep in each other") from None
