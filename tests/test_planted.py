"""The demo's folder in which odd images hide."""

from __future__ import annotations

import pytest
from PIL import Image

from clip_ood.demo import planted
from clip_ood.errors import UserError


@pytest.fixture
def root(tmp_path):
    for place, count in (("id/hoofed animal", 3), ("id/bird", 4), ("ood/stamps/a", 12), ("ood/digits", 20)):
        folder = tmp_path / "demo" / place
        folder.mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (10, 8), (number, count, len(place))).save(folder / f"{number}.png")
    return tmp_path / "demo"


def test_photographs_are_mixed_with_odd_images_and_copies(root, tmp_path):
    planted.main([str(root), str(tmp_path / "out")])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert len([name for name in names if name.startswith("odd-stamps-")]) == 10
    assert len([name for name in names if name.startswith("odd-digits-")]) == 17
    assert {"bird-0.png", "hoofed_animal-2.png"} < names and len(names) == 7 + 27 + 2
    copy, half = (next(name for name in names if name.startswith(f"{kind}-of-")) for kind in ("copy", "half"))
    originals = [path.read_bytes() for path in (root / "id").rglob(copy.removeprefix("copy-of-"))]
    assert (tmp_path / "out" / copy).read_bytes() in originals
    assert Image.open(tmp_path / "out" / half).size == (5, 4)
    planted.main([str(root), str(tmp_path / "out")])  # made anew, and the same
    assert {path.name for path in (tmp_path / "out").iterdir()} == names


def test_without_the_demo_images_it_says_how_to_get_them(tmp_path):
    with pytest.raises(UserError, match="demo images"):
        planted.main([str(tmp_path / "none"), str(tmp_path / "out")])
