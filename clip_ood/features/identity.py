"""The identity of an entry of the feature store: 16 bytes of a hash, kept as two halves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

SIZE = 16  # bytes


def identity_of(*parts: bytes | str) -> bytes:
    """Returns 16 bytes that identify some content: the BLAKE2b hash of its parts, each behind its length.

    >>> identity_of("ab", "c") == identity_of("a", "bc")
    False
    """
    digest = hashlib.blake2b(digest_size=SIZE)
    for part in parts:
        content = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8, "little"))
        digest.update(content)
    return digest.digest()


def pairs(identities: Iterable[bytes]) -> np.ndarray:
    """Returns identities as (n, 2) uint64."""
    return np.frombuffer(b"".join(identities), dtype="<u8").astype(np.uint64).reshape(-1, 2)


def hexadecimal(identity: np.ndarray) -> str:
    """Returns one identity (2,) as 32 hex digits.

    >>> hexadecimal(pairs([bytes(range(16))])[0])
    '000102030405060708090a0b0c0d0e0f'
    """
    return identity.astype("<u8").tobytes().hex()


def find(first: np.ndarray, second: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns the place of each of `wanted` (m, 2) among n identities whose halves are `first` (ascending) and `second`, or -1
    if it is not among them.

    >>> find(np.array([3, 5, 5], np.uint64), np.array([0, 1, 2], np.uint64), np.array([[5, 2], [5, 9]], np.uint64))
    array([ 2, -1])
    """
    found = np.full(len(wanted), -1)
    place = np.searchsorted(first, wanted[:, 0])
    left = np.arange(len(wanted))
    while len(left):  # more than once only if several identities share a first half
        left = left[place[left] < len(first)]
        left = left[first[place[left]] == wanted[left, 0]]
        same = second[place[left]] == wanted[left, 1]
        found[left[same]] = place[left[same]]
        left = left[~same]
        place[left] += 1
    return found


def originals(identities: np.ndarray) -> np.ndarray:
    """Returns, for each of n identities (n, 2), the row of the first one that equals it (n,): its own row unless it is a copy.

    >>> originals(np.array([[3, 1], [2, 0], [3, 1]], np.uint64))
    array([0, 1, 0])
    """
    order = np.lexsort((identities[:, 1], identities[:, 0]))  # stable: of equal ones the first comes first
    is_new = np.ones(len(order), bool)
    is_new[1:] = (identities[order[1:]] != identities[order[:-1]]).any(axis=1)
    first = np.empty(len(order), np.int64)
    first[order] = order[is_new][np.cumsum(is_new) - 1]
    return first


def firsts(identities: np.ndarray) -> np.ndarray:
    """Returns the first row of each distinct identity (n, 2), ascending.

    >>> firsts(np.array([[3, 1], [2, 0], [3, 1]], np.uint64))
    array([0, 1])
    """
    return np.flatnonzero(originals(identities) == np.arange(len(identities)))
