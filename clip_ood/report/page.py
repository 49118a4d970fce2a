"""Makes a page from its template: one file, without scripts, that asks no network for anything."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined
from markupsafe import Markup

from clip_ood.files.writing import write_text
from clip_ood.terminal.shown import shown


def write_page(path: Path, template: str, **values: Any) -> None:
    """Fills a template of `templates/`, with every value escaped, into the file `path`, whole or not at all."""
    write_text(path, render(template, **values))


def render(template: str, also: Path | None = None, **values: Any) -> str:
    """Fills a template of `templates/`, or of the folder `also`, with every value escaped."""
    return _environment(also).get_template(template).render(values)


def percent(value: float | None, digits: int = 1) -> str:
    """Returns a fraction in percent, without the sign: 0.975 -> 97.5."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def number(value: float) -> str:
    """Returns a number with four significant digits or, if it is large, all digits before the point; its minus is a true minus sign.

    >>> number(0.39851), number(-432400.2)
    ('0.3985', '−432,400')
    """
    return (f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:#.4g}").replace("-", "−")


def for_people(value: Any) -> Any:
    """Returns text as it may be shown; what is HTML already was made safe piece by piece."""
    return shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment(also: Path | None = None) -> Environment:
    environment = Environment(
        loader=ChoiceLoader([PackageLoader("clip_ood.report"), *([FileSystemLoader(also)] if also else [])]),
        autoescape=True,  # anybody may have chosen the names of files, sets and classes
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.finalize = for_people
    environment.filters |= {"percent": percent, "number": number}
    return environment
