"""What a server takes from its callers at most, so that nobody's requests cost it the memory or the time of all others."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one request may have, and all of them together.

    Attributes: bytes, of a request; images, of a request; pixels, of an image by its header; seconds, in which a request must have come,
    its head and its body each; waiting, images of all requests that wait to be judged; kept, bytes of all requests that are being
    received or decoded; connections, that are open.
    """

    bytes: int = 32 * 2**20
    images: int = 64
    pixels: int = 50_000_000
    seconds: float = 30.0
    waiting: int = 256
    kept: int = 256 * 2**20
    connections: int = 500


class Room:
    """Counts what is held of something of which no more than `most` may be. Used in one thread."""

    def __init__(self, most: int) -> None:
        self.most, self.taken = most, 0

    def take(self, count: int) -> bool:
        """Takes room, or says that there is not enough of it."""
        if self.taken + count > self.most:
            return False
        self.taken += count
        return True

    def give_back(self, count: int) -> None:
        """Gives back what was taken."""
        self.taken -= count
