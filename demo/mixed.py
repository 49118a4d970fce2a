"""Makes a folder of photographs to judge that a run has not learnt from: ID test images and others, mixed.

clip-ood demo mixed [RUN] [OUT]      (default runs/demo, data/demo/mixed)
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import yaml

from clip_ood.data.image_list import lot
from clip_ood.demo.folders import written_whole
from clip_ood.errors import UserError
from clip_ood.process.called import called
from clip_ood.process.streams import Parser
from clip_ood.terminal.shown import say

EACH = 8  # of ID test images, and of each OOD set


def mix(run: Path, out: Path) -> None:
    """Copies a seeded draw of the run's ID test images and of its OOD images to `out`, each named after its set."""
    data = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]
    folders = {"id_test": data["id"]["images"]["folder"]} | {name: each["folder"] for name, each in data["ood"].items()}
    rows = pq.read_table(run / "scores.parquet", columns=["set", "path"]).to_pylist()
    with written_whole(out) as folder:
        folder.mkdir(parents=True, exist_ok=True)
        for name, place in folders.items():
            paths = sorted((row["path"] for row in rows if row["set"] == name), key=lambda path: lot(0, path))
            for path in paths[:EACH]:
                source = Path(data["root"], place, path)
                shutil.copyfile(
                    source, folder / f"{name.removesuffix('_test')}-{'-'.join(Path(path).parts)}".replace(" ", "_")
                )
        (folder / "notes.txt").write_text("No image: listed, and passed over.\n", encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="clip-ood demo mixed", description="A folder of photographs for a demo run to judge.")
    parser.add_argument("run", nargs="?", type=Path, default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("out", nargs="?", type=Path, default=Path("data/demo/mixed"), help="default: %(default)s")
    arguments = parser.parse_args(argv)
    if not (arguments.run / "scores.parquet").is_file():
        raise UserError(f"{arguments.run} is no finished run: {called('train')} --config demo.yaml")
    shutil.rmtree(arguments.out, ignore_errors=True)
    mix(arguments.run, arguments.out)
    say(f"{len(list(arguments.out.iterdir()))} files in {arguments.out}")
