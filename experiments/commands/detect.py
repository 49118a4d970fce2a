"""A finished run judges new images: which of them are out-of-distribution?"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from clip_ood.command_line import before_and_after_dashes
from clip_ood.config.detect_checks import check
from clip_ood.config.detect_options import add_options, trainer_of
from clip_ood.config.new_files import alone_at_file
from clip_ood.errors import ConfigError
from clip_ood.process.called import called
from clip_ood.process.launchers import settle
from clip_ood.process.loading import loading
from clip_ood.process.ranks import is_first
from clip_ood.process.streams import Parser
from clip_ood.runs.going_on import again, stoppable
from clip_ood.terminal.shown import say

if TYPE_CHECKING:
    from clip_ood.experiments.predictions import Counts


def main(argv: list[str] | None = None) -> None:
    parser = Parser(prog=called("detect"), description=__doc__, allow_abbrev=False)
    add_options(parser)
    options, paths = before_and_after_dashes(sys.argv[1:] if argv is None else argv)
    arguments, overrides = parser.parse_known_intermixed_args(options)
    arguments.paths += paths
    trainer = trainer_of(overrides)
    check(arguments)
    if arguments.fdr is not None:
        check_has_end(arguments.paths)
    settle({"devices": 1} | trainer)
    with alone_at_file(arguments):
        counts = answer(arguments, trainer, argv)
    if counts is not None:
        sys.exit(status(counts, arguments.strict, arguments.fail_on_ood, arguments.fail_on_alarm))


def check_has_end(paths: list[str]) -> None:
    """Raises ConfigError for inputs that may never end, over which --fdr cannot decide."""
    from clip_ood.data.inputs import is_stream

    if (stream := next(filter(is_stream, paths), None)) is not None:
        called = "standard input (-)" if stream == "-" else stream
        raise ConfigError(
            f"--fdr decides when the last image was judged, and {called} may have no last one: write the paths to a file, as "
            "list.txt, and name that file"
        )


def answer(arguments: argparse.Namespace, trainer: dict[str, Any], argv: list[str] | None) -> Counts | None:
    """Judges images and counts them, or writes what --export and --with-encoder ask for and returns None."""
    if arguments.export is not None:
        from clip_ood.detect.saved import SavedDetector
        from clip_ood.experiments.exporting import export_run

        saved = SavedDetector(arguments.run, arguments.trust_classes)
        own = (arguments.detector, arguments.accept, arguments.encoder, arguments.allow_download)
        export_run(saved, arguments.export, *own)
        return None
    if arguments.with_encoder:
        from clip_ood.experiments.exporting import add_encoder_to

        add_encoder_to(arguments.run, arguments.encoder, arguments.allow_download, arguments.trust_classes)
        return None
    with loading():  # torch and Lightning
        from clip_ood.experiments.detect import Request, conduct

    asked = {name: value for name, value in vars(arguments).items() if name in Request.__dataclass_fields__}
    kept = f"What was judged is kept. Go on with: {again('detect', argv)}"
    lost = "Printed predictions are not kept: with --out FILE, a stopped call goes on where it was"
    with stoppable(lambda: lost if arguments.out is None else kept):
        counts = conduct(Request(**asked, trainer=trainer))
    if arguments.shard is not None and is_first():
        given = ["--shard", str(arguments.shard), f"--shard={arguments.shard}"]
        say(
            f"Next: when all shards are judged, write {arguments.out} by {again('detect', argv, drop=given)}",
            file=sys.stderr,
        )
    return counts


def status(counts: Counts, strict: bool, fail_on_ood: bool, fail_on_alarm: bool) -> int:
    """Returns 1 if an image could not be judged (with `strict`), otherwise 4 if a watched stream has changed (with `fail_on_alarm`),
    otherwise 3 if an image is OOD by the first detector (with `fail_on_ood`), otherwise 0."""
    if strict and counts.failed + counts.left:
        return 1
    if fail_on_alarm and counts.alarmed:
        return 4
    return 3 if fail_on_ood and next(iter(counts.ood.values())) else 0
