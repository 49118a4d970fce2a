"""Decides whether a program may ask the server: whoever has its token, if it has one, and no page of another site."""

from __future__ import annotations

import hmac

from starlette.responses import JSONResponse

from clip_ood.serve.access import Access, Call, Scope, headers_of, site_of
from clip_ood.serve.refusals import Refusal, full

OPEN = ("/health", "/ready")  # for whoever looks whether the process lives; they tell nothing else


class Callers:
    """ASGI middleware that refuses who may not ask.

    A request needs the header `Authorization: Bearer TOKEN`, if there is a `token`. If others cannot reach the server, `access` knows the
    names by which this machine is called. A browser says by the header Origin which page asks, and only those of this server may.
    """

    def __init__(self, app: Call, token: str | None, access: Access | None, connections: int) -> None:
        self.app, self.token, self.access, self.connections = app, token, access, connections

    async def __call__(self, scope: Scope, receive: Call, send: Call) -> None:
        if scope["type"] != "http":
            return  # a WebSocket is closed
        refusal = self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
            return
        answer = JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
        await answer(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        if scope["path"] not in OPEN and len(scope.get("state", {}).get("connections", ())) > self.connections:
            refusal = full(f"more than {self.connections:,} connections are open", 5)
            refusal.headers["connection"] = "close"
            return refusal
        hosts = headers_of(scope, b"host")
        if self.access is not None and (len(hosts) != 1 or not self.access.means_us(hosts[0])):
            return Refusal(421, "this server answers only to the address that it was started with")
        if any([site_of(each)] != hosts for each in headers_of(scope, b"origin")):
            return Refusal(403, "a page of another site asks for this")
        if self.token is None or scope["path"] in OPEN or self._has_token(scope):
            return None
        return Refusal(
            401, "the token is missing or wrong: send it as Authorization: Bearer TOKEN", www_authenticate="Bearer"
        )

    def _has_token(self, scope: Scope) -> bool:
        expected = f"Bearer {self.token}".encode()
        return any(
            hmac.compare_digest(each.encode("latin-1"), expected) for each in headers_of(scope, b"authorization")
        )
