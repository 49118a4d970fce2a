"""The demo's table against the one of docs/demo.md: columns, sets, counts, AUROCs within 1 point."""

import csv
import re
import sys
from pathlib import Path

COLUMNS = [
    "detector",
    "setting",
    "ood",
    "group",
    "auroc",
    "fpr95",
    "fpr95_ood_positive",
    "aupr_in",
    "aupr_out",
    "f1",
    "best_f1",
    "n_id",
    "n_ood",
]
SETS = {"stamps": 154, "symbols": 247, "digits": 200, "mean": 601}


def committed(readme: str) -> dict[tuple[str, str], float]:
    """AUROC by (detector, set) of the table between the page's demo marks."""
    table = re.search(r"<!-- demo -->\n(.*?)<!-- /demo -->", readme, re.DOTALL).group(1)
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    header, rows = lines[0], lines[2:]
    return {
        (row[0].strip("` "), name): float(cell.split("/")[0])
        for row in rows
        for name, cell in zip(header[1:], row[1:], strict=True)
    }


def main(results: str, readme: str) -> None:
    with open(results, newline="") as file:
        reader = csv.DictReader(file)
        assert reader.fieldnames == COLUMNS, f"columns are {reader.fieldnames}"
        rows = list(reader)
    found = {(row["detector"], row["ood"]): float(row["auroc"]) for row in rows}
    assert {row["ood"]: int(row["n_ood"]) for row in rows} == SETS
    expected = committed(Path(readme).read_text())
    assert found.keys() == expected.keys(), f"only in one: {sorted(found.keys() ^ expected.keys())}"
    off = {key: (found[key], value) for key, value in expected.items() if abs(found[key] - value) > 1}
    assert not off, f"AUROC found and committed differ by more than a point: {off}"
    print(f"demo table: {len(found)} AUROCs within 1 point of the page's")


if __name__ == "__main__":
    main(*sys.argv[1:])
