"""Reads a page of the web as the folder of what it links to."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import replace
from errno import EFBIG, EIO
from html.parser import HTMLParser
from posixpath import splitext
from urllib.parse import SplitResult, urljoin, urlsplit

from clip_ood.files.https import in_ascii
from clip_ood.files.pictures import SUFFIXES
from clip_ood.files.remote.address import WEB, Address
from clip_ood.files.remote.content import content_at
from clip_ood.files.remote.patience import LIST

LARGEST = 1 << 28  # bytes of a page
UNENDED = re.compile(r"&(?=\w+[^\w;])")  # is no character of HTML: in ?id=1&region=eu, it is not that of &reg;


class _Links(HTMLParser):
    """Collects where the links of a page lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found += [value.strip() for key, value in attributes if (tag, key) == ("a", "href") and value]


def linked(folder: Address) -> dict[str, Address]:
    """Returns the files and folders that the page of a folder links to, by name; those of folders end in /.

    Links to pages elsewhere are left out, as are those with a query, which may sort the same otherwise, unless an image or a folder is
    called so. Raises: OSError for a server that refuses or does not answer, and for images elsewhere, or deeper below the folder.
    """
    content = content_at(folder, LIST, LARGEST)
    if len(content) > LARGEST:
        raise OSError(EFBIG, f"its page has over {LARGEST:,} bytes", str(folder))
    page = _Links()
    page.feed(UNENDED.sub("&amp;", _text(content)))
    base = urljoin(f"{str(folder).rstrip('/')}/", ".")
    above = _parts(urlsplit(base))[:-1]
    found: dict[str, dict[str, str]] = defaultdict(dict)  # by name and query
    for link in page.found:
        try:
            there = urlsplit(urljoin(base, link))
            parts = _parts(there)
        except ValueError:  # it is no address
            continue
        is_below = list(map(folder.unquoted, parts[: len(above)])) == list(map(folder.unquoted, above))
        rest = "/".join(parts[len(above) :]) if is_below else None
        is_image = splitext(folder.unquoted(there.path))[1].lower() in SUFFIXES
        is_folder = bool(rest) and rest.endswith("/")
        if there.scheme not in WEB or rest == "" or not (is_image or is_folder or (rest and not there.query)):
            continue
        name = folder.unquoted((rest or "/").removesuffix("/"))
        if rest is None or "/" in name:
            told = f"its page links to {link.partition('?')[0]}, which does not lie directly in it: name a folder whose page lists its own files"
            raise OSError(EIO, told, str(folder))
        found[name + "/" * is_folder][there.query] = rest
    for name, queries in found.items():
        if len(queries) > 1 and "" not in queries:
            told = f"its page links to {name} with {len(queries)} queries (?…), which may be different files: name those that are meant in a list"
            raise OSError(EIO, told, str(folder))
    place = folder.path.rstrip("/")
    return {
        name: replace(folder, path=f"{place}/{rest}", query=query or folder.query)
        for name, queries in found.items()
        for query, rest in [min(queries.items())]  # without a query, if there is such a link
    }


def _text(page: bytes) -> str:
    try:
        return page.decode()
    except UnicodeDecodeError:
        return page.decode("latin-1")


def _parts(url: SplitResult) -> list[str]:
    """Returns the host of an address, and the parts of its path. Raises: ValueError for what is no host."""
    return [in_ascii(f"https://{url.netloc}").lower(), *url.path.split("/")]
