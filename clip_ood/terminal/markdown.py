"""Writes tables in Markdown, whatever their cells hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from clip_ood.terminal.shown import one_line


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], names: int) -> str:
    """Returns a table whose first `names` columns are text and the others numbers; a | in a cell divides no columns.

    >>> print(markdown_table(["score", "AUROC"], [["a|b", "95.6"]], names=1))
    | score | AUROC |
    |---|---:|
    | a\\|b | 95.6 |
    """
    rule = "|" + "---|" * names + "---:|" * (len(header) - names)
    return "\n".join([_line(header), rule, *map(_line, rows)])


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(one_line(cell).replace("|", r"\|") for cell in cells) + " |"
