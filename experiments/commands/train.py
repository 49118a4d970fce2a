"""Conducts one experiment: images → features → training → table."""

from __future__ import annotations

import sys

from clip_ood.command_line import add_plan, parse
from clip_ood.config.checks import check_folders
from clip_ood.config.loading import dump, load_config
from clip_ood.errors import ConfigError
from clip_ood.experiments.commands.checks import check_named
from clip_ood.experiments.kept_decisions import as_kept, kept_in
from clip_ood.experiments.resume import check_resumed
from clip_ood.process.launchers import settle
from clip_ood.process.loading import loading
from clip_ood.runs.going_on import resume_line, stoppable
from clip_ood.runs.run_folder import check_report, chosen_folder, replacing
from clip_ood.terminal.shown import say


def main(argv: list[str] | None = None) -> None:
    arguments, overrides = parse("train", argv, __doc__, add_plan)
    if arguments.config is None:
        raise ConfigError("Which experiment? Name one: --config demo.yaml (see configs/), or --help")
    config = load_config(arguments.config, overrides)
    if arguments.print_config:
        say(dump(config), end="")
        return
    if arguments.plan:
        from clip_ood.experiments.forecast.plan import plan_experiment

        sys.exit(plan_experiment(config, None, arguments.resume, arguments.overwrite))
    check_folders(as_kept(config, kept_in(config.runs_root / config.name)) if arguments.resume else config)
    settle(config.trainer)
    check_named(config.trainer)
    with chosen_folder(config.runs_root, config.name, arguments.resume, arguments.overwrite) as folder:
        if arguments.resume:
            check_resumed(config, folder)
        with loading():  # torch and Lightning, so only now that the config is known to be right
            from clip_ood.experiments.seeds import conduct

        with stoppable(lambda: resume_line("train", argv, folder)), replacing(folder):
            conduct(config, folder)
    check_report(folder)
