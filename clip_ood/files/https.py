"""Makes requests that never leave HTTPS once they have used it."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from http.client import HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from clip_ood.errors import UserError

TIMEOUT = 60  # seconds without a byte
AS_IT_IS = "%:/?#[]@!$&'()*+,;=~"  # what a whole address may hold; blanks and letters beyond ASCII are written as %20 and the like
LONE = re.compile("%(?![0-9A-Fa-f]{2})")  # a percent sign that begins no such escape


class UnsafeRedirect(UserError):
    """A server that was asked by HTTPS redirects to an address without it."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, request: urllib.request.Request, answer: IO[bytes], code: int, reason: str, headers: HTTPMessage, url: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if urlsplit(request.full_url).scheme == "https" else ("https", "http")
        if urlsplit(url).scheme not in allowed:
            raise UnsafeRedirect(f"the server sends on to {url.partition('?')[0]}, which is no https address")
        return super().redirect_request(request, answer, code, reason, headers, in_ascii(url))


def opened(url: str, headers: dict[str, str]) -> HTTPResponse:
    """Returns the answer to a GET of an http or https address, after redirects.

    Raises: UnsafeRedirect, urllib.error.HTTPError, OSError.
    """
    opener = urllib.request.build_opener(_Redirects)
    return opener.open(urllib.request.Request(in_ascii(url), headers=headers), timeout=TIMEOUT)


def in_ascii(url: str) -> str:
    """Returns an address as its server is asked for it: the name of the host by IDNA, all else by percent signs.

    >>> in_ascii("https://łódź.example:8080/100% häuser.zip")
    'https://xn--d-uga0v4h.example:8080/100%25%20h%C3%A4user.zip'
    """
    parts = urlsplit(quote(LONE.sub("%25", url), safe=AS_IT_IS))
    host, *port = unquote(parts.netloc).split(":")
    if host.isascii():
        return urlunsplit(parts)
    return urlunsplit(parts._replace(netloc=":".join([host.encode("idna").decode(), *port])))
