"""A study as its command reads it, before anything is run."""

from __future__ import annotations

from clip_ood.experiments.study.here import check_expected, of_what_is_here
from clip_ood.experiments.study.plan import Plan, read_study


def load_study(name: str, arguments: list[str] | None = None) -> Plan:
    plan = read_study(name, arguments)
    check_expected(plan)
    return of_what_is_here(plan)
