"""The routes of a review: its page, the images and their pictures by row, and decisions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from clip_ood.report.page import for_people, render
from clip_ood.serve.access import Access
from clip_ood.serve.application import TEMPLATES
from clip_ood.serve.run_images import SIDES, RunImages
from clip_ood.serve.session import VIEWS, Review

Row = Annotated[int, Field(ge=0, lt=2**31)]


class Asked(BaseModel):
    """What a request asks for; other keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class DecisionAsked(Asked):
    rows: Annotated[list[Row], Field(min_length=1, max_length=200)]
    decision: Literal["keep", "reject", "relabel", "skip", "undo"]
    label: Annotated[str, Field(max_length=1000)] = ""


class DrawAsked(Asked):
    n: Annotated[int, Field(ge=1, le=100_000)]


def review_routes(review: Review, images: RunImages, name: str, access: Access) -> APIRouter:
    """Returns the routes of the review of the run `name`."""
    router, suspects = APIRouter(), review.suspects
    script = {
        "token": access.token,
        "labels": [*suspects.labels],
        "detectors": [*suspects.images[0].scores] if suspects.images else [],
        "views": [*review.views],
    }

    def checked(row: int) -> int:
        if not 0 <= row < len(suspects):
            raise HTTPException(404, f"there is no image {row}")
        return row

    @router.get("/", response_class=HTMLResponse)
    def page() -> str:
        return render("review.html.j2", TEMPLATES, run=name, decisions=str(review.file), values=script)

    @router.get("/api/items")
    def items(
        view: Literal[VIEWS] = "suspects",
        start: Annotated[int, Query(ge=-1, lt=2**31)] = 0,
        count: Annotated[int, Query(ge=1, le=200)] = 40,
    ) -> dict[str, Any]:
        """Images of a view from a place on; -1 stands for the first one that is not decided."""
        rows, of = review.rows(view), review.state().of
        if start < 0:
            start = next((place for place, row in enumerate(rows) if row not in of), 0)
        sections = {section.first: section for section in review.sections(view)}
        first = max((at for at in sections if at <= start), default=None)
        found = []
        for place, row in enumerate(rows[start : start + count], start):
            first = place if place in sections else first
            section = sections.get(first)
            found.append(_about(review, row, view) | {"place": place, "section": section and _section(section)})
        return {"total": len(rows), "start": start, "items": found, "progress": review.progress()}

    @router.get("/image/{row}/{size}")
    def picture(row: int, size: Literal[tuple(SIDES)], request: Request) -> Response:
        content = suspects.images[checked(row)].image
        headers = {"etag": f'"{content}-{size}"', "cache-control": "private, no-cache"}
        if request.headers.get("if-none-match") == headers["etag"]:
            images.load(row)  # it may be gone by now
            return Response(status_code=304, headers=headers)
        return Response(images.picture(row, size), media_type="image/jpeg", headers=headers)

    @router.post("/api/decisions")
    def decide(asked: DecisionAsked) -> dict[str, Any]:
        refused = review.decide([checked(row) for row in asked.rows], asked.decision, asked.label)
        of = review.state().of
        told = {row: _decision(of.get(row)) for row in asked.rows}
        return {"refused": refused, "decisions": told, "progress": review.progress()}

    @router.post("/api/draw")
    def draw(asked: DrawAsked) -> dict[str, Any]:
        drawn = review.draw(asked.n)
        return {"n": len(drawn.images), "among": drawn.among, "progress": review.progress()}

    return router


def _about(review: Review, row: int, view: str) -> dict[str, Any]:
    about = review.suspects.images[row]
    return {
        "row": row,
        "rank": row + 1,
        "path": for_people(about.path),
        "label": for_people(about.label),
        "words": for_people(about.words),
        "score": about.score,
        "scores": [*about.scores.values()],
        "beside": _beside(review, row, view),
        "doubt": _doubt(review, row) if view == "labels" else None,
        "decision": _decision(review.state().of.get(row)),
    }


def _beside(review: Review, row: int, view: str) -> dict[str, Any] | None:
    if (found := review.beside(view, row)) is None:
        return None
    other, is_what = found
    image = review.suspects.images[other]
    cosine = review.suspects.images[row].cosine if is_what == "nearest" else None
    return {
        "row": other,
        "is": is_what,
        "path": for_people(image.path),
        "label": for_people(image.label),
        "cosine": cosine,
    }


def _doubt(review: Review, row: int) -> dict[str, Any]:
    """Returns the class that is suggested, by its place among the labels, and the shares of both classes in the vote."""
    doubt = review.suspects.doubts[row]
    return {
        "suggested": review.suspects.labels.index(doubt.suggested),
        "of_label": doubt.label_probability,
        "of_suggested": doubt.suggested_probability,
    }


def _decision(decision: Any) -> dict[str, str] | None:
    return decision and {name: for_people(getattr(decision, name)) for name in ("decision", "label", "by", "time")}


def _section(section: Any) -> dict[str, Any]:
    return {
        "title": for_people(section.title),
        "first": section.first,
        "count": len(section.rows),
        "rows": section.rows[:10_000],
    }
