"""What a program is told when its request is not carried out."""

from __future__ import annotations

from fastapi import HTTPException


class Refusal(HTTPException):
    """A request is not carried out. Its answer is {"error": the reason}."""

    def __init__(self, status: int, reason: str, **headers: str) -> None:
        super().__init__(status, reason, {name.replace("_", "-"): value for name, value in headers.items()})


def full(reason: str, seconds: int = 1) -> Refusal:
    """Returns the refusal of a request that may be sent again after some seconds."""
    return Refusal(503, f"{reason}: send it again in {seconds} s or more", retry_after=str(seconds))
