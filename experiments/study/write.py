"""Writes the files of a study into its folder: table (Markdown), values (CSV) and figure (PNG)."""

from __future__ import annotations

from clip_ood.experiments.study.figures import write_figure
from clip_ood.experiments.study.plan import Plan
from clip_ood.experiments.study.report import markdown
from clip_ood.experiments.study.values import Results, missing, over_seeds, values, write_values
from clip_ood.files.writing import write_text
from clip_ood.terminal.shown import say, shown


def write(plan: Plan, results: Results, failed: dict[str, str]) -> None:
    """Writes <name>.md, <name>.csv and <name>.png, and prints the table."""
    rows = values(plan, results)
    table, csv, figure = (plan.folder / f"{plan.study.name}{suffix}" for suffix in (".md", ".csv", ".png"))
    write_values(csv, rows)
    write_figure(figure, plan, rows)
    left_out = [f"Left out: {run} ({reason})" for run, reason in failed.items()]
    text = markdown(plan, rows, over_seeds(results), [*missing(plan, results), *left_out])
    write_text(table, shown(text))
    say(text)
    say("Written: " + ", ".join(map(str, (table, csv, figure))))
    say(f"Next: look at {figure}, or add lines or axes and run it again: what is finished is kept")
