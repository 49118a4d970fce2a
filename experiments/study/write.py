"""Writes the files of a study into its folder: table (Markdown), values (CSV) and figure (PNG)."""

from __future__ import annotations

from clip_ood.experiments.study.expected import Compared, compared, write_compared
from clip_ood.experiments.study.figures import write_figure
from clip_ood.experiments.study.plan import Plan
from clip_ood.experiments.study.report import markdown
from clip_ood.experiments.study.values import Results, missing, over_seeds, values, write_values
from clip_ood.files.writing import write_text
from clip_ood.terminal.shown import say, shown


def write(plan: Plan, results: Results, failed: dict[str, str]) -> list[Compared]:
    """Writes <name>.md, <name>.csv, <name>.png and, with expected numbers, <name>.expected.csv, and prints the table.

    Returns the expected numbers that are missed.
    """
    rows = values(plan, results)
    files = {kind: plan.folder / f"{plan.study.name}.{kind}" for kind in ("md", "csv", "png")}
    write_values(files["csv"], rows)
    if found := compared(plan, results):
        files["expected.csv"] = plan.folder / f"{plan.study.name}.expected.csv"
        write_compared(files["expected.csv"], found)
    write_figure(files["png"], plan, found or rows)
    left_out = [f"Left out: {run} ({reason})" for run, reason in failed.items()]
    absent = [f"Not here: {each}" for each in plan.absent]
    text = markdown(plan, found or rows, over_seeds(results), [*missing(plan, results), *left_out, *absent])
    write_text(files["md"], shown(text))
    say(text)
    say("Written: " + ", ".join(map(str, files.values())))
    say(f"Next: look at {files['png']}, or add lines or axes and run it again: what is finished is kept")
    return [each for each in found if each.is_missed]
