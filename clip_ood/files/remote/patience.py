"""Asks servers again that are overloaded or do not answer, ever more slowly, and says what is wrong where asking again is of no use."""

from __future__ import annotations

import binascii
import random
import time
from collections.abc import Callable, Iterator
from errno import EACCES, EIO, ENOENT
from typing import Any, TypeVar

from clip_ood.files.remote.address import WEB, Address
from clip_ood.files.remote.file_systems import CREDENTIALS, SILENCE, file_system
from clip_ood.process.stalls import begun

Answer = TypeVar("Answer")

TRIES = 6
PAUSE = 0.5  # seconds before the second try; doubled each time, and drawn between half of it and all of it
SLOWEST = 1 << 15  # bytes a second: slower servers are given up, even if some byte comes now and then
LIST = 1 << 22  # bytes that the list of a folder is given time for
BUSY = (408, 425, 429)  # statuses of HTTP that ask for patience, beside those from 500 on
LIBRARIES = ("aiohttp", "aiobotocore", "botocore", "fsspec", "asyncio", "gcsfs", "google", "azure", "adlfs")
LIBRARIES += ("huggingface_hub", "requests", "httpx", "httpcore", "urllib3", "concurrent")  # or begin so, as httpx2
UNSIGNED = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
FINAL = (*UNSIGNED, "ClientConnectorCertificateError", "InvalidURL", "NonHttpUrlClientError", "ParamValidationError")
SIGNED = "a signed address holds for some time only: sign it anew, and name it with its query (?…), which is not written down"


def asked(address: Address, method: str, size: int = 0, tries: int = TRIES, **options: Any) -> Any:
    """Returns what a method of fsspec gives for an address whose answer has some `size` bytes; a server that is busy is asked again.

    Raises: FileNotFoundError where nothing is, PermissionError, and OSError for a server that does not answer, each with a reason (its
    `strerror`) that shows no credentials.
    """
    fs, path = file_system(address)
    limit = longest_wait(size)
    if fs.async_impl:
        return patiently(lambda: getattr(fs, method)(path, **options, timeout=limit), address, tries)
    return patiently(lambda: _within(limit, lambda: getattr(fs, method)(path, **options)), address, tries)


def longest_wait(size: int) -> float:
    """Returns in how many seconds an answer of some `size` bytes must have come."""
    return SILENCE + size / SLOWEST


def patiently(ask: Callable[[], Answer], address: Address, tries: int = TRIES) -> Answer:
    """Returns what `ask` does, which asks the server of an address. Raises: as `asked` does."""
    for number in range(1, tries + 1):
        try:
            return ask()
        except Exception as error:
            if not (isinstance(error, OSError | TimeoutError) or _library(error).startswith(LIBRARIES)):
                raise
            if number == tries or not _may_pass(error):
                raise _told(error, address, number) from None  # the cause may show a signature
            time.sleep(_pause(error, number))


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """Returns what `ask` does, which knows no limit itself: where it takes longer, it is left to a thread that ends with the process.

    Raises: TimeoutError, and as `ask` does.
    """
    return begun(ask).result(seconds)


def _pause(error: BaseException, number: int) -> float:
    """Returns how long to wait after so many tries; no less than the server says, as far as that is a minute."""
    wanted = next((told for each in _causes(error) if (told := _retry_after(each)) is not None), None)
    least = min(float(wanted), 60) if wanted is not None and wanted.isdigit() else 0
    return max(least, PAUSE * 2 ** (number - 1) * random.uniform(0.5, 1))


def _causes(error: BaseException) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _retry_after(error: BaseException) -> str | None:
    """Returns the header of the answer that an error tells of."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict):  # botocore, with names in small letters
        return answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("retry-after")
    return (getattr(error, "headers", None) or {}).get("Retry-After")


def _library(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]


def _status(error: BaseException) -> int | None:
    """Returns the status of HTTP that an error, or what has caused it, tells of."""
    for each in _causes(error):
        answer = getattr(each, "response", None)
        if isinstance(answer, dict):  # botocore
            return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
        found = (
            getattr(each, "status", None),
            getattr(each, "status_code", None),
            getattr(answer, "status_code", None),
        )
        found += (getattr(each, "code", None),) if _library(each) in ("gcsfs", "google") else ()
        if (status := next((one for one in found if isinstance(one, int) and 400 <= one < 600), None)) is not None:
            return status
    return None


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, TimeoutError):
        return True
    if (status := _status(error)) is not None:
        return status in BUSY or status >= 500
    *_, first = _causes(error)
    refused = isinstance(first, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError)
    return not refused and type(first).__name__ not in FINAL and not isinstance(first, binascii.Error)  # a key


def _told(error: BaseException, address: Address, tries: int) -> OSError:
    """Returns the error in words of ours: those of libraries may hold the whole address, with a signature in it."""
    status, place = _status(error), str(address)
    *_, first = _causes(error)
    name = type(first).__name__
    if name in UNSIGNED or isinstance(first, binascii.Error):
        return PermissionError(EACCES, f"no credentials were found that can be used: {_way_out(address)}", place)
    if status in (401, 403) or isinstance(first, PermissionError) or isinstance(error, PermissionError):
        return PermissionError(EACCES, f"the server refuses it{_code(status)}: {_way_out(address)}", place)
    if status == 400:
        told = (
            f"the server refuses the request (400), as it does with credentials that have expired: {_way_out(address)}"
        )
        return PermissionError(EACCES, told, place)
    if status in (404, 410) or (status is None and isinstance(first, FileNotFoundError)):
        return FileNotFoundError(
            ENOENT, "nothing is there, or no such bucket" if _in_bucket(address) else "nothing is there", place
        )
    again = f", after {tries} tries" if tries > 1 else ""
    if status is not None:
        return OSError(EIO, f"the server answers {status}{again}: try again later", place)
    why = "it takes too long" if isinstance(first, TimeoutError) else name
    return OSError(EIO, f"the server does not answer ({why}{again}): look at the address and the network", place)


def _code(status: int | None) -> str:
    return "" if status is None else f" ({status})"


def _in_bucket(address: Address) -> bool:
    return address.protocol not in (*WEB, "memory")


def _way_out(address: Address) -> str:
    if address.is_signed:
        return SIGNED
    if address.protocol in CREDENTIALS:
        return f"set {CREDENTIALS[address.protocol]}"
    return "look at the address, or get a signed one"
