"""train.py or eval.py with parts of 16 images: python tests/small_parts.py train --config …

A few hundred images then fill many parts, as ImageNet does with parts of the real size.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from clip_ood.features import store
from experiments.command_line import guarded

if __name__ == "__main__":
    store.PART = 16
    guarded(lambda: import_module(sys.argv[1]).main(sys.argv[2:]))
