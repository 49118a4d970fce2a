"""Makes a folder of photographs among which odd images hide: single ones, a group that is all alike, and copies.

clip-ood demo planted [ROOT] [OUT]      (default data/demo, data/demo/planted)
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from clip_ood.data.image_list import lot
from clip_ood.demo.folders import written_whole
from clip_ood.errors import UserError
from clip_ood.process.called import called
from clip_ood.process.streams import Parser
from clip_ood.terminal.shown import say

SINGLE, ALIKE = 10, 17  # odd images: of the stamps, which are of many kinds, and of the digits


def plant(root: Path, out: Path) -> None:
    """Copies the demo's ID photographs to `out`, without their classes, with a seeded draw of odd images and two copies among them."""
    photographs = sorted((root / "id").rglob("*.png"))
    with written_whole(out) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in _named(root, photographs):
            shutil.copyfile(path, folder / name)
        first, second = sorted(photographs, key=lambda path: lot(1, path.name))[:2]
        shutil.copyfile(first, folder / f"copy-of-{first.name}")
        with Image.open(second) as image:
            image.resize((image.width // 2, image.height // 2)).save(folder / f"half-of-{second.name}")


def _named(root: Path, photographs: list[Path]) -> Iterator[tuple[str, Path]]:
    for path in photographs:
        yield f"{path.parent.name}-{path.name}".replace(" ", "_"), path
    for name, count in (("stamps", SINGLE), ("digits", ALIKE)):
        for path in sorted((root / "ood" / name).rglob("*.png"), key=lambda path: lot(0, path.name))[:count]:
            yield f"odd-{name}-{path.name}", path


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="clip-ood demo planted", description="A folder of photographs in which odd images hide.")
    parser.add_argument("root", nargs="?", type=Path, default=Path("data/demo"), help="default: %(default)s")
    parser.add_argument("out", nargs="?", type=Path, default=Path("data/demo/planted"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not (arguments.root / "id").is_dir():
        raise UserError(f"{arguments.root} holds no demo images: {called('demo')} images")
    shutil.rmtree(arguments.out, ignore_errors=True)
    plant(arguments.root, arguments.out)
    say(f"{len(list(arguments.out.iterdir()))} files in {arguments.out}")
