"""Makes the application of a browser or of programs: its guard, and the routes that it is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from starlette.exceptions import HTTPException as AnyHTTPException

from clip_ood.errors import UserError
from clip_ood.report.page import for_people, render
from clip_ood.serve.access import Access, Guard

TEMPLATES = Path(__file__).parent / "templates"


def create_app(access: Access, routers: Sequence[APIRouter]) -> FastAPI:
    """Returns an application with these routes for a browser, for those whom `access` allows, with style and script.

    What a user can mend (`UserError`) is answered with status 409 and its message; no documentation of the routes is served.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, access=access)
    app.add_exception_handler(UserError, _told)
    app.add_exception_handler(OSError, _told)
    for router in (_files(), *routers):
        app.include_router(router)
    return app


def create_service(title: str, version: str, routers: Sequence[APIRouter]) -> FastAPI:
    """Returns an application with these routes for programs, described at /openapi.json; errors are answered as {"error": …}.

    The page /docs shows the same to people. It is our own, because FastAPI's loads its script from another host.
    """
    app = FastAPI(title=title, version=version, docs_url=None, redoc_url=None)
    app.add_exception_handler(AnyHTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    for router in routers:
        app.include_router(router)

    @app.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
    async def described() -> HTMLResponse:
        return HTMLResponse(render("routes.html.j2", TEMPLATES, about=app.openapi()))

    return app


def _refused(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AnyHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def _failed(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": "this is a fault of the server's own, and stands in its log"}, 500)


def _told(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"error": for_people(str(error))}, 409)


def _files() -> APIRouter:
    router = APIRouter()
    style = render("style.css") + (TEMPLATES / "review.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "review.js").read_text(encoding="utf-8")

    @router.get("/style.css")
    def style_sheet() -> Response:
        return Response(style, media_type="text/css")

    @router.get("/review.js")
    def review_script() -> Response:
        return Response(script, media_type="text/javascript")

    return router
