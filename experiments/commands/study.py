"""Makes a table or a figure from many runs; finished runs are not run again."""

from __future__ import annotations

import sys

from clip_ood.command_line import add_plan, parse
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.commands.checks import check_named
from clip_ood.experiments.study.here import check_expected, of_what_is_here
from clip_ood.experiments.study.plan import read_study, remove_runs
from clip_ood.process.launchers import settle
from clip_ood.process.loading import loading
from clip_ood.runs.going_on import again, stoppable
from clip_ood.runs.run_folder import alone_in, check_report
from clip_ood.terminal.shown import say


def main(argv: list[str] | None = None) -> None:
    arguments, overrides = parse("study", argv, __doc__, add_plan, of="study")
    if arguments.config is None:
        raise ConfigError("Which study? Name one: --config few_shot_demo.yaml (see configs/studies/), or --help")
    plan = read_study(arguments.config, overrides)
    if arguments.print_config:
        from clip_ood.config.loading import dump

        say("\n---\n".join(map(dump, plan.runs.values())), end="")
        return
    check_expected(plan)
    if plan.study.leaves_out or not arguments.plan:
        plan = of_what_is_here(plan)
    if arguments.plan:
        from clip_ood.experiments.forecast.plan import plan_study

        sys.exit(plan_study(plan, arguments.overwrite))
    settle(next(iter(plan.runs.values())).trainer)
    for config in plan.runs.values():
        check_named(config.trainer)
    with alone_in(plan.folder, "this study"):
        if arguments.overwrite:
            remove_runs(plan)
        with loading():
            from clip_ood.experiments.study.conduct import conduct
            from clip_ood.experiments.study.write import write

        way_on = lambda: f"Finished runs are kept. Go on with: {again('study', argv, drop=['--overwrite'])}"  # noqa: E731
        with stoppable(way_on):
            results, failed = conduct(plan)
            missed = write(plan, results, failed) if results else []
    for run in plan.runs:
        check_report(plan.folder / run)
    if missed:
        told = "; ".join(
            f"{' · '.join(filter(None, (each.place, each.line, each.ood, each.metric)))} {each.difference:+.2f}"
            for each in missed
        )
        raise UserError(
            f"{len(missed)} expected number{' is' if len(missed) == 1 else 's are'} missed by more points than {plan.study.name} allows: {told}"
        )
