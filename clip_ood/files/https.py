"""Makes requests that never leave HTTPS once they have used it."""

from __future__ import annotations

import urllib.error
import urllib.request
from http.client import HTTPMessage, HTTPResponse
from typing import IO
from urllib.parse import quote, urlsplit

from clip_ood.errors import UserError

TIMEOUT = 60  # seconds without a byte
AS_IT_IS = "%:/?#[]@!$&'()*+,;=~"  # what a whole address may hold; blanks and letters beyond ASCII are written as %20 and the like


class UnsafeRedirect(UserError):
    """A server that was asked by HTTPS redirects to an address without it."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, request: urllib.request.Request, answer: IO[bytes], code: int, reason: str, headers: HTTPMessage, url: str
    ) -> urllib.request.Request | None:
        allowed = ("https",) if urlsplit(request.full_url).scheme == "https" else ("https", "http")
        if urlsplit(url).scheme not in allowed:
            raise UnsafeRedirect(f"the server sends on to {url.partition('?')[0]}, which is no https address")
        return super().redirect_request(request, answer, code, reason, headers, url)


def opened(url: str, headers: dict[str, str]) -> HTTPResponse:
    """Returns the answer to a GET of an http or https address, after redirects.

    Raises: UnsafeRedirect, urllib.error.HTTPError, OSError.
    """
    url = quote(url, safe=AS_IT_IS)
    opener = urllib.request.build_opener(_Redirects)
    return opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
