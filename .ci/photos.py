"""A folder's pictures as JPEGs called a.jpg, b.jpg, …: python .ci/photos.py FROM TO"""

import sys
from pathlib import Path

from PIL import Image

source, target = map(Path, sys.argv[1:])
target.mkdir()
for number, path in enumerate(sorted(source.glob("*.png"))):
    name = chr(ord("a") + number) if number < 26 else f"z{number}"
    Image.open(path).convert("RGB").save(target / f"{name}.jpg", quality=95)
