"""Can the detectors be fooled? OOD images are perturbed towards ID features, and every detector scores them again."""

from __future__ import annotations

import sys

from clip_ood.command_line import add_plan, parse
from clip_ood.errors import ConfigError
from clip_ood.experiments.attack.plan import check_resumed, load_attack, read_attack
from clip_ood.experiments.commands.checks import check_named
from clip_ood.process.launchers import settle
from clip_ood.process.loading import loading
from clip_ood.runs.going_on import resume_line, stoppable
from clip_ood.runs.run_folder import FINISHED, check_report, chosen_folder, replacing, started
from clip_ood.terminal.shown import say


def main(argv: list[str] | None = None) -> None:
    arguments, overrides = parse("attack", argv, __doc__, add_plan, of="attack")
    if arguments.config is None:
        raise ConfigError("Which attack? Name one: --config adversarial_demo.yaml (see configs/attacks/), or --help")
    plan = (read_attack if arguments.plan else load_attack)(arguments.config, overrides)
    if arguments.print_config:
        say(plan.dump(), end="")
        return
    if arguments.plan:
        from clip_ood.experiments.forecast.plan import plan_attack

        sys.exit(plan_attack(plan, arguments.resume, arguments.overwrite))
    settle(plan.config.trainer)
    check_named(plan.config.trainer)
    with chosen_folder(plan.attack.runs_root, plan.attack.name, arguments.resume, arguments.overwrite) as folder:
        if arguments.resume:
            check_resumed(plan, folder)
        with loading():  # torch and Lightning
            from clip_ood.experiments.attack.conduct import conduct
            from clip_ood.experiments.attack.report import write

        way_on = lambda: resume_line("attack", argv, folder)  # noqa: E731
        with stoppable(way_on), replacing(folder), started(folder, plan.dump()):
            if found := conduct(plan, folder):
                write(plan, folder, found)
    for run in sorted(folder.glob(f"*/{FINISHED}")):
        check_report(run.parent)
