"""Makes fsspec's file system of an address: one a process, because they are not fork-safe, with limits to every wait."""

from __future__ import annotations

import os
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

from clip_ood.errors import UserError
from clip_ood.files.remote.address import EXTRAS, WEB, Address

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

CONNECT = 10  # seconds that a server may take to accept a connection
SILENCE = 60  # seconds without a byte
AT_ONCE = 16  # requests that wait for answers at the same time
CREDENTIALS = {  # where each kind of address takes its credentials from
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, or AWS_PROFILE (FSSPEC_S3_ANON=true for a public bucket; "
    "AWS_ENDPOINT_URL for a server other than Amazon's)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth application-default login (FSSPEC_GS_TOKEN=anon for a public bucket)",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "abfs": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN",
    "hf": "HF_TOKEN, or hf auth login",
}

_turns: dict[int, Lock] = {}  # by process, as one may be begun while another thread has the lock


class LacksPackage(UserError):
    """What reads addresses of a kind is not installed."""


def file_system(address: Address) -> tuple[AbstractFileSystem, str]:
    """Returns the file system of an address, and the path of the address in it.

    fsspec's own settings (FSSPEC_S3_ENDPOINT_URL=…, or JSON files in ~/.config/fsspec) are followed. Raises: LacksPackage, and UserError
    where credentials are missing or cannot be used.
    """
    kind = _class_of(address.protocol)
    told = tuple(sorted(kind._get_kwargs_from_urls(address.whole).items()))
    process = os.getpid()
    with _turns.setdefault(process, Lock()):  # several threads begin at the same time
        made = _made(process, address.protocol, told)
    return made, kind._strip_protocol(address.whole)


@cache
def _made(process: int, protocol: str, told: tuple[tuple[str, Any], ...]) -> AbstractFileSystem:
    """Makes a file system for this `process`; those that it has inherited from another one are not used."""
    options = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        made = _class_of(protocol)(**options, **dict(told), **_limits(protocol))
    except (ValueError, LookupError, OSError):
        # adlfs and gcsfs look for credentials at once; their words may hold them
        if protocol not in CREDENTIALS:
            raise
        raise UserError(
            f"{protocol}:// cannot be read without credentials that can be used: set {CREDENTIALS[protocol]}"
        ) from None
    if protocol == "s3":
        made.retries = 1  # `patiently` tries again, alike for all
    return made


def _class_of(protocol: str) -> type[AbstractFileSystem]:
    import fsspec

    try:
        return fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        extra = EXTRAS[protocol]
        way_out = f"pip install 'clip-ood[{extra}]'" if extra else f"it needs a package that is not there ({error})"
        raise LacksPackage(f"{protocol}:// cannot be read: {way_out}") from error


def _limits(protocol: str) -> dict[str, Any]:
    if protocol == "s3":
        from fsspec.config import conf

        own = {"connect_timeout": CONNECT, "read_timeout": SILENCE, "retries": {"total_max_attempts": 1}}
        own |= {"max_pool_connections": 2 * AT_ONCE}
        return {"config_kwargs": own | conf.get("s3", {}).get("config_kwargs", {})}
    if protocol in WEB:
        from aiohttp import ClientTimeout

        return {"client_kwargs": {"timeout": ClientTimeout(total=None, sock_connect=CONNECT, sock_read=SILENCE)}}
    return {"timeout": SILENCE} if protocol == "gs" else {}
