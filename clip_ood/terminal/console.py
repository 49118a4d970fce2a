"""Rich's console, which sends styles and moves of its own to a terminal, and of any text what may be shown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from clip_ood.terminal.shown import shown


class Terminal(Console):
    """A console whose texts are `clip_ood.terminal.shown.shown`, by whatever way they come."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"emoji": False} | options)  # :cat: is a name like others

    def render_str(self, text: str, **options: Any) -> Text:
        """Before it is laid out, so that columns are as wide as what stands in them."""
        return super().render_str(shown(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=shown(segment.text))
