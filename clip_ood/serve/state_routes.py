"""What a server says of itself: whether it lives, is ready, what judges, and its figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute

from clip_ood.serve.figures import TYPE, Figures
from clip_ood.serve.judge import Judge

STATES = ("/health", "/ready", "/version", "/metrics", "/openapi.json", "/docs")


def state_routes(current: Callable[[], Judge | None], figures: Figures, versions: dict[str, str]) -> APIRouter:
    """Returns the routes; `current` returns the judge, or None while none is loaded."""
    router = APIRouter()

    @router.get("/health")
    async def health() -> dict[str, bool]:
        """Says that the process lives."""
        return {"alive": True}

    @router.get("/ready", responses={503: {"description": "The detector is being loaded"}})
    async def ready() -> JSONResponse:
        """Says whether the detector is loaded."""
        loaded = current() is not None
        return JSONResponse({"ready": loaded}, 200 if loaded else 503)

    @router.get("/version")
    async def version() -> dict[str, Any]:
        """Names the versions of packages, and the detector folder that judges by the digest of its manifest."""
        judge = current()
        told = {"detectors": None, "digest": None, "since": None}
        if judge is not None:
            told = {"detectors": judge.predictor.columns, "digest": judge.digest, "since": judge.since}
        return {"versions": versions} | told

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Returns figures in the text format of Prometheus."""
        return Response(figures.text(), media_type=TYPE)

    for route in [each for each in router.routes if isinstance(each, APIRoute)]:
        router.add_api_route(route.path, route.endpoint, methods=["HEAD"], include_in_schema=False)
    return router
