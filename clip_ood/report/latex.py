"""Writes a comparison as a LaTeX table."""

from __future__ import annotations

import re
from collections.abc import Sequence

from clip_ood.metrics.ood import MEAN
from clip_ood.metrics.paired import Difference, Line

ESCAPED = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
ESCAPED |= {letter: f"\\{letter}" for letter in "&%$#_{}"}
SYMBOLS = {"±": r"$\pm$", "−": "$-$", "√": r"$\surd$", "·": r"$\cdot$", "∞": r"$\infty$", "…": r"\ldots{}"}


def latex_table(titles: Sequence[str], lines: Sequence[Line], caption: str) -> str:
    """Returns a table for the packages booktabs and, for names in other scripts, fontspec.

    It has the AUROC of each run and, below the first, differences with their intervals in points; those are bold which the
    corrected test finds. `titles` name the runs.
    """
    runs = len(titles)
    header = ["detector", "OOD set", *titles, *(f"{title} − {titles[0]}" for title in titles[1:])]
    rows = []
    for line in lines:
        cells = [escaped(line.detector), escaped(line.ood), *(f"{100 * value:.2f}" for value in line.aurocs)]
        rows.append(" & ".join([*cells, *map(_cell, line.differences)]) + r" \\")
        if line.ood == MEAN and line is not lines[-1]:
            rows.append(r"\addlinespace")
    columns = "ll" + "r" * runs + "l" * (runs - 1)
    top = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{escaped(caption)}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        " & ".join(map(escaped, header)) + r" \\",
        r"\midrule",
    ]
    return "\n".join([*top, *rows, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def escaped(text: str) -> str:
    """Returns a text as LaTeX shows it; control characters and line ends become blanks.

    >>> escaped("a_b & 5 %")
    'a\\\\_b \\\\& 5 \\\\%'
    """
    plain = re.sub(r"[\x00-\x1f\x7f-\x9f]", " ", text)
    return "".join(ESCAPED.get(letter, SYMBOLS.get(letter, letter)) for letter in plain)


def _cell(difference: Difference) -> str:
    spread = "" if difference.std is None else rf" $\pm$ {100 * difference.std:.2f}"
    value, low, high = (_signed(each) for each in (difference.value, difference.low, difference.high))
    value = rf"\textbf{{{value}}}" if difference.claimed else value
    return f"{value}{spread} [{low}, {high}]"


def _signed(value: float) -> str:
    return f"{100 * value:+.2f}".replace("-", "$-$").replace("+", "$+$").replace("inf", r"$\infty$")
