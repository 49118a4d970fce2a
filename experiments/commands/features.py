"""Lists what lies in a feature store, checks whether it is whole, removes it, and exports the features of a run's images.

clip-ood features list                          encoders, images, texts, bytes, last use
clip-ood features check --repair                reads everything; removes what is damaged, which the next run makes again
clip-ood features remove 3f2a --dry-run         an encoder's entries, by the beginning of its number
clip-ood features remove --old                  what older versions have left
clip-ood features remove --unused-for 90        encoders that no run has read from for this many days
clip-ood features remove --files                what files were found to hold: the next run reads them once
clip-ood features export --run runs/own_images --out embeddings.parquet      for DuckDB, FiftyOne, Embedding Atlas
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from clip_ood.config.new_files import check_new, check_suffix
from clip_ood.errors import ConfigError, UserError
from clip_ood.features.upkeep import FILES, check, choose, encoders, remove, remove_files, show
from clip_ood.files.writing import check_writable
from clip_ood.process.streams import Parser
from clip_ood.runs.run_folder import CONFIG, FINISHED
from clip_ood.terminal.shown import say, shown


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog="clip-ood features", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("features"), help="the store [features]")
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("list", help="list encoders with their images, texts, bytes and last use")
    checking = actions.add_parser("check", help="read every segment and compare it with its checksum")
    checking.add_argument("--repair", action="store_true", help="remove what is damaged, so that it is made again")
    removing = actions.add_parser("remove", help="remove entries of encoders")
    removing.add_argument("numbers", nargs="*", metavar="NUMBER", help="the beginning of an encoder's number")
    removing.add_argument("--old", action="store_true", help="remove what older versions have left")
    removing.add_argument("--unused-for", type=float, metavar="DAYS", help="remove what no run has read for DAYS days")
    removing.add_argument(
        "--files", action="store_true", help="remove what files were found to hold; the next run reads them once"
    )
    removing.add_argument("--dry-run", action="store_true", help="say what would be removed, and remove nothing")
    exporting = actions.add_parser("export", help="write the features, scores and groups of a run's images to a file")
    exporting.add_argument("--run", type=Path, required=True, metavar="DIR", help="a finished run")
    exporting.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file, FILE.parquet")
    exporting.add_argument("--overwrite", action="store_true", help="replace the file of --out")
    for each in (actions.choices[name] for name in ("list", "check", "remove")):
        each.add_argument("--root", type=Path, default=argparse.SUPPRESS, help="the store [features]")
    given = parser.parse_args(argv)
    if given.action == "export":
        export(given.run, given.out, given.overwrite)
        return
    if not given.root.is_dir():
        sys.exit(shown(f"error: there is no folder {given.root}; name the store with --root"))
    if not (given.root / FILES).is_dir() and not encoders(given.root):
        sys.exit(shown(f"error: {given.root} is no feature store; name one with --root"))
    if given.action == "list":
        show(given.root)
    elif given.action == "check":
        sys.exit(1 if check(given.root, given.repair) else 0)
    else:
        by_encoder = given.numbers or given.old or given.unused_for is not None
        if not (by_encoder or given.files):
            removing.error("name encoders by their number (see list), or --old, --unused-for DAYS or --files")
        try:
            if given.files:
                remove_files(given.root, given.dry_run)
            if by_encoder:
                chosen = choose(encoders(given.root), given.numbers, given.old, given.unused_for)
                remove(given.root, chosen, given.dry_run)
        except UserError as error:
            sys.exit(shown(f"error: {error}"))


def export(run: Path, out: Path, overwrite: bool) -> None:
    """Writes what `export_embeddings` does. Raises: ConfigError for a folder that is no run, and a file that cannot be written."""
    if not (run / CONFIG).is_file():
        raise ConfigError(f"--run: {run} is no run: it holds no {CONFIG}")
    if not (run / FINISHED).is_file():
        raise ConfigError(
            f"--run: {run} is no finished run: it lacks {FINISHED}; the run's command goes on with it (--resume)"
        )
    check_suffix("--out", out, (".parquet",))
    if not out.parent.is_dir():
        raise ConfigError(f"--out: there is no folder {out.parent}")
    check_new("--out", out, overwrite)
    check_writable(out.parent)
    from clip_ood.experiments.embeddings import export_embeddings  # imports torch and the readers of images

    say(f"{out}: {export_embeddings(run, out):,} images with their features")
