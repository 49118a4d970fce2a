"""Evaluates an encoder as it is, or a run's head, without training; or compares or summarizes several runs."""

from __future__ import annotations

import sys
from pathlib import Path

from clip_ood.command_line import add_plan, parse
from clip_ood.config.checks import check_folders
from clip_ood.config.loading import dump, load_config
from clip_ood.errors import ConfigError
from clip_ood.experiments.commands.checks import check_named
from clip_ood.experiments.kept_decisions import as_kept, kept_by
from clip_ood.experiments.resume import check_heads, check_resumed
from clip_ood.files.text_files import OTHER_BYTES, not_utf8
from clip_ood.files.writing import check_writable
from clip_ood.process.called import called
from clip_ood.process.launchers import settle
from clip_ood.process.loading import loading
from clip_ood.runs.going_on import resume_line, stoppable
from clip_ood.runs.run_folder import CONFIG, FINISHED, check_report, chosen_folder, is_attack, replacing
from clip_ood.terminal.shown import say


def add_options(parser) -> None:
    parser.add_argument("--run", metavar="DIR", type=Path, help="evaluate the head of this run; results go to DIR-eval")
    parser.add_argument(
        "--compare",
        metavar="DIR",
        nargs="+",
        help="show finished runs side by side, with paired differences to the first",
    )
    parser.add_argument(
        "--summary",
        metavar="DIR",
        nargs="+",
        help="write a page of finished runs on one or several benchmarks, a line a run (DIR:detector chooses its detector)",
    )
    parser.add_argument("--report", metavar="DIR", type=Path, help="write report.html of this finished run again")
    add_plan(parser)
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        help="with --compare: write the comparison as a page, too; with --summary: where to write it (default: summary.html beside the first run)",
    )


def main(argv: list[str] | None = None) -> None:
    arguments, overrides = parse("eval", argv, __doc__, add_options)
    if arguments.html is not None:
        check_page(arguments.html, arguments.compare or arguments.summary)
    for run in [*(arguments.compare or []), *(arguments.summary or []), arguments.report or ""]:
        if not_utf8(str(run)):
            raise ConfigError(OTHER_BYTES.format(run))
    if arguments.compare is not None:
        from clip_ood.report.compare import show

        show(arguments.compare, arguments.html)
        return
    if arguments.summary is not None:
        from clip_ood.report.summarize import show_summary

        show_summary(arguments.summary, arguments.html)
        return
    if arguments.report is not None:
        write_report(arguments.report)
        return
    if (arguments.config is None) == (arguments.run is None):
        raise ConfigError(
            "Evaluate what? --config zero_shot_demo.yaml, or --run runs/demo, or --compare runs/a runs/b, or --summary runs/*, or --report runs/demo; or --help"
        )
    if arguments.run is not None:
        if not (arguments.run / "config.yaml").is_file():
            raise ConfigError(f"{arguments.run} is no run: it holds no config.yaml")
        overrides = [f"--name={arguments.run.resolve().name}-eval", *overrides]
    config = load_config(arguments.config or str(arguments.run / "config.yaml"), overrides)
    if arguments.print_config:
        say(dump(config), end="")
        return
    if arguments.run is None and config.method.settings.trains:
        raise ConfigError(f"method.{config.method.name} is trained: {called('train')} --config {arguments.config}")
    if arguments.plan:
        from clip_ood.experiments.forecast.plan import plan_experiment

        sys.exit(plan_experiment(config, arguments.run, arguments.resume, arguments.overwrite))
    if arguments.run is not None and config.method.settings.trains:
        check_heads(arguments.run, config)
    check_folders(as_kept(config, kept_by(arguments.run, config)))
    settle(config.trainer)
    check_named(config.trainer)
    with chosen_folder(config.runs_root, config.name, arguments.resume, arguments.overwrite) as folder:
        if arguments.resume:
            check_resumed(config, folder)
        with loading():
            from clip_ood.experiments.seeds import conduct

        with stoppable(lambda: resume_line("eval", argv, folder)), replacing(folder):
            conduct(config, folder, arguments.run)
    check_report(folder)


def write_report(run: Path) -> None:
    """Writes the report of a finished run from its own files and pictures. Raises: ConfigError for anything but a finished run."""
    if not all((run / name).is_file() for name in (CONFIG, FINISHED)):
        raise ConfigError(f"--report: {run} is no finished run: it lacks {CONFIG} or {FINISHED}")
    if is_attack(run):
        raise ConfigError(
            f"--report: {run} is an attack, whose pictures and tables lie beside its {FINISHED}: it has no other report"
        )
    from clip_ood.experiments.reporting import draw_again

    say(f"Report: {draw_again(run)}")


def check_page(path: Path, compared: list[str] | None) -> None:
    """Raises ConfigError if there is nothing to make a page of, or nowhere to put it."""
    if compared is None:
        raise ConfigError(
            f"--html {path} is the page of a comparison or a summary: add --compare runs/a runs/b or --summary runs/a runs/b (a run has its own report.html)"
        )
    if path.is_dir() or not path.parent.is_dir():
        there = "is a folder" if path.is_dir() else f"would lie in {path.parent}, which is no folder"
        raise ConfigError(f"--html: {path} {there}; name a file in a folder that there is")
    if path.suffix.lower() == ".csv":
        raise ConfigError(
            f"--html: {path} has the name of a table, and a summary writes its own beside the page: call the page {path.with_suffix('.html')}"
        )
    check_writable(path.parent)
