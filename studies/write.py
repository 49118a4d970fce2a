"""The files of a study: table (Markdown), values (CSV) and figure (PNG), in its folder."""

from __future__ import annotations

from studies.figures import write_figure
from studies.plan import Plan
from studies.report import markdown
from studies.values import Results, missing, over_seeds, values, write_values


def write(plan: Plan, results: Results, failed: dict[str, str]) -> None:
    """Writes <name>.md, <name>.csv and <name>.png, and prints the table."""
    rows = values(plan, results)
    stem = plan.folder / plan.study.name
    write_values(stem.with_suffix(".csv"), rows)
    write_figure(stem.with_suffix(".png"), plan, rows)
    left_out = [f"Left out: {run} ({reason})" for run, reason in failed.items()]
    text = markdown(plan, rows, over_seeds(results), [*missing(plan, results), *left_out])
    stem.with_suffix(".md").write_text(text, encoding="utf-8")
    print(text)
    print("Written: " + ", ".join(str(stem.with_suffix(suffix)) for suffix in (".md", ".csv", ".png")))
    print(f"Next: look at {stem.with_suffix('.png')}, or add lines or axes and run it again: what is finished is kept")
