"""Decides who may use the application: whoever knows its token, through an address by which this machine is meant."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.responses import PlainTextResponse

Scope = MutableMapping[str, Any]
Call = Callable[..., Awaitable[Any]]
LOOPBACK = ("127.0.0.1", "localhost", "::1")
HEADERS = {  # of every answer: nothing is loaded from elsewhere, and no page elsewhere may show it
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}
READS = ("GET", "HEAD")


@dataclass(frozen=True)
class Access:
    """Who may ask.

    Attributes: hosts: names that a request's Host may have, beside those of `LOOPBACK`; by_number: whether it may be any IP address
    (no page of another site can give that name to this machine); cookie: the name of the cookie that holds the token.
    """

    hosts: tuple[str, ...] = ()
    by_number: bool = False
    cookie: str = "clip_ood"
    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    def means_us(self, host: str) -> bool:
        """Says whether a Host header means this machine by a name that is known, whatever the port."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        known = {each.lower() for each in (*LOOPBACK, *self.hosts)}  # as urlsplit gives the name
        return name in known or (self.by_number and _is_number(name))

    def knows(self, token: str) -> bool:
        """Says in constant time whether this is the token."""
        return hmac.compare_digest(token.encode("utf-8", "surrogateescape"), self.token.encode())


class Guard:
    """ASGI middleware that refuses what `Access` does not allow.

    The token is in the address of the first request (`?token=`), which sets a cookie for the others. What changes something must
    have it in the header X-Token as well, which no page of another site can set.
    """

    def __init__(self, app: Call, access: Access) -> None:
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Call, send: Call) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a WebSocket is closed
        given = _tokens(scope, self.access.cookie)
        refusal = self._refusal(scope, given)
        answer = self.app if refusal is None else refusal
        first = refusal is None and self.access.knows(given["address"])

        async def send_guarded(message: Scope) -> None:
            if message["type"] == "http.response.start":
                named = {name for name, _ in message["headers"]}
                more = {**HEADERS, **({} if b"cache-control" in named else {"cache-control": "no-store"})}
                if first:
                    more["set-cookie"] = f"{self.access.cookie}={self.access.token}; HttpOnly; SameSite=Strict; Path=/"
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in more.items())]
            await send(message)

        await answer(scope, receive, send_guarded)

    def _refusal(self, scope: Scope, given: dict[str, str]) -> PlainTextResponse | None:
        hosts = headers_of(scope, b"host")
        if len(hosts) != 1 or not self.access.means_us(hosts[0]):
            return PlainTextResponse("This application answers only to the address that it was started with.", 421)
        if not any(self.access.knows(token) for token in given.values()):
            return PlainTextResponse("The token is missing or wrong: open the address that the terminal shows.", 403)
        if scope["method"] not in READS and not self.access.knows(given["header"]):
            return PlainTextResponse("A change needs the token in the header X-Token.", 403)
        origins = headers_of(scope, b"origin")
        if any(site_of(each) != hosts[0] for each in origins):
            return PlainTextResponse("A page of another site asks for this.", 403)
        return None


def _tokens(scope: Scope, cookie: str) -> dict[str, str]:
    """Returns the tokens in the address, the header and the cookie of a request, empty where there is none."""
    address = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
    cookies = (each.strip().partition("=") for header in headers_of(scope, b"cookie") for each in header.split(";"))
    held = dict((name, value) for name, _, value in cookies).get(cookie, "")
    return {"address": address, "header": next(iter(headers_of(scope, b"x-token")), ""), "cookie": held}


def headers_of(scope: Scope, name: bytes) -> list[str]:
    """Returns the values of the headers of a request that have this name."""
    headers: Iterable[tuple[bytes, bytes]] = scope["headers"]
    return [value.decode("latin-1") for key, value in headers if key == name]


def site_of(origin: str) -> str | None:
    """Returns the host, with its port, of the page that a header Origin names; None for what is no address."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_number(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
