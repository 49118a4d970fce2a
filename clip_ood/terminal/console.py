"""A console of Rich, which sends its own styles and moves to a terminal, but of any text only what may be shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from clip_ood.terminal.shown import shown


class Terminal(Console):
    """A console whose texts all pass `clip_ood.terminal.shown.shown`."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"emoji": False} | options)  # :cat: is a name like others

    def render_str(self, text: str, **options: Any) -> Text:
        """Cleans a text before it is laid out, so that columns are as wide as what they show."""
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))
