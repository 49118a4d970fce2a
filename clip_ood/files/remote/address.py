"""Addresses of files in buckets and behind URLs: s3://photos/cats, https://example.org/cats.zip."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from posixpath import basename, dirname, splitext
from urllib.parse import parse_qsl, unquote

from clip_ood.errors import UserError
from clip_ood.files.text_files import not_utf8

EXTRAS = {  # how an address begins -> the extra of this project that reads it, if it needs one
    "s3": "s3",
    "gs": "gcs",
    "az": "azure",
    "abfs": "azure",
    "https": None,
    "http": None,
    "hf": None,
    "memory": None,
}
WEB = ("https", "http")
BEGINNING = re.compile(rf"({'|'.join([*EXTRAS, 'file'])})://", re.IGNORECASE)
PASSWORD = re.compile(r"(?!arn:)[^/@]*:[^@]*@")  # before a bucket; secrets of AWS may hold a slash
SIGNATURE = re.compile(r"sig|.*signature", re.IGNORECASE)  # a key of a query
CREDENTIAL = re.compile(
    rf"{SIGNATURE.pattern}|auth|hmac|jwt|hdn[a-z]{{2}}|.*(token|secret|password|credential|api[-_]?key)", re.IGNORECASE
)


class WrongAddress(UserError):
    """A text begins as an address does, and cannot be one."""


@dataclass(frozen=True)
class Address:
    """The address of a file or folder. As text, it is without the query, which may be a signature (`?X-Amz-Signature=…`).

    `path` is all behind `protocol`://. Addresses are joined and taken apart as paths are: `address / "cats"`, `name`, `parent`. Joined to
    the right of a path, an address stays as it is, as an absolute path does.
    """

    protocol: str
    path: str
    query: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    @property
    def whole(self) -> str:
        """The address with its query: what is opened, and what is never shown or written down."""
        return f"{self}?{self.query}" if self.query else str(self)

    @property
    def is_signed(self) -> bool:
        """Whether the query holds credentials: a signature, a token or the like.

        >>> [Address("https", "h/a.jpg", query).is_signed for query in ("v=2", "id=1&X-Amz-Signature=1f", "sig=1f", "access_token=1f")]
        [False, True, True, True]
        """
        return self._asks_with(CREDENTIAL)

    @property
    def lasting(self) -> str:
        """The address with its query, but for a signature, which is another one each time.

        >>> Address("https", "example.org/image", "id=1").lasting, Address("https", "example.org/image", "X-Amz-Signature=1f").lasting
        ('https://example.org/image?id=1', 'https://example.org/image')
        """
        return str(self) if self._asks_with(SIGNATURE) else self.whole

    def _asks_with(self, key: re.Pattern) -> bool:
        """Says whether the query has such a key."""
        return any(key.fullmatch(each) for each, _ in parse_qsl(self.query, keep_blank_values=True))

    @property
    def name(self) -> str:
        """The last part of the path.

        >>> Address("https", "example.org/my%20cats.zip", "X-Amz-Signature=1f").name
        'my cats.zip'
        """
        return self.unquoted(basename(self.path.rstrip("/")))

    @property
    def stem(self) -> str:
        return splitext(self.name)[0]

    @property
    def suffix(self) -> str:
        return splitext(self.name)[1]

    @property
    def parent(self) -> Address:
        return replace(self, path=dirname(self.path.rstrip("/")) or self.path)

    @property
    def parents(self) -> list[Address]:
        """The folders that it lies in, the innermost first."""
        parts = self.path.rstrip("/").split("/")
        return [replace(self, path="/".join(parts[:count])) for count in range(len(parts) - 1, 0, -1)]

    def with_name(self, name: str) -> Address:
        return self.parent / name

    def resolve(self) -> Address:
        return self

    def __truediv__(self, inside: str | Path | Address) -> Address | Path:
        if isinstance(inside, Address) or Path(inside).is_absolute():
            return inside if isinstance(inside, Address) else Path(inside)
        inside = str(inside)
        return self if inside in ("", ".") else replace(self, path=f"{self.path.rstrip('/')}/{inside}")

    def __rtruediv__(self, folder: Path) -> Address:
        return self

    def unquoted(self, part: str) -> str:
        """Returns a part of the path as it is called: on the web, spaces and other characters are written as %20 and the like."""
        return unquote(part, errors="surrogateescape") if self.protocol in WEB else part


def is_address(text: str | Path | Address) -> bool:
    """Says whether a text, or what was made of it, is an address.

    >>> [is_address(text) for text in ("s3://photos/a.jpg", "photos/a.jpg", "ftp://example.org/a.jpg")]
    [True, False, False]
    """
    return isinstance(text, Address) or (isinstance(text, str) and BEGINNING.match(text) is not None)


def place_at(text: str | Path | Address) -> Path | Address:
    """Returns the address that a text is, or else the path of a file or folder of this machine, as also of file://….

    Raises: WrongAddress for an address without a path, for one that is not UTF-8, and for one with a user and a password.
    """
    if not is_address(text) or isinstance(text, Address):
        return text if isinstance(text, Address) else Path(text)
    protocol, _, path = str(text).partition("://")
    protocol, query = protocol.lower(), ""
    if protocol in WEB:
        path, _, query = path.partition("#")[0].partition("?")
    host, _, rest = path.partition("/")
    is_signed_in = "@" in host and protocol != "abfs"  # abfs has container@account
    if is_signed_in or (protocol not in WEB and PASSWORD.match(path)):
        behind = f"{host.rpartition('@')[2]}/{rest}" if is_signed_in else path.rpartition("@")[2]
        raise WrongAddress(
            f"{protocol}://…@{behind}: no password stands in an address, which is shown and written down: "
            "leave out what stands before @, and set credentials in the environment (docs/buckets.md)"
        )
    if protocol == "file":
        if host.lower() not in ("", "localhost"):
            raise WrongAddress(
                f"file://{path} names another machine, {host}: write file:///{path} for a file of this one"
            )
        return Path(unquote(f"/{rest}", errors="surrogateescape"))
    if not_utf8(path):
        raise WrongAddress(
            f"{protocol}://{path}: the address is not UTF-8, as all are: write it, or the list that names it, as UTF-8"
        )
    if not host:
        raise WrongAddress(
            f"{protocol}:// is an address without a place: name one, as {protocol}://{_example(protocol)}"
        )
    return Address(protocol, path if protocol in WEB else path.rstrip("/"), query)


def _example(protocol: str) -> str:
    if protocol in WEB:
        return "example.org/photos.zip"
    return "datasets/user/photos" if protocol == "hf" else "bucket/photos"
