"""The keys by which a run knows its image sets: id, id.train, …, ood_val, and csid/NAME and ood/NAME for those that a user named."""

from __future__ import annotations


def key_of(role: str, name: str) -> str:
    """Returns a run's key for a set under data.csid or data.ood.

    The project's own keys (id, train, …) have no slash, so that a set may have one of their names.

    >>> key_of("ood", "train")
    'ood/train'
    """
    return f"{role}/{name}"


def called(key: str) -> str:
    """Returns people's name for the set with this key."""
    return key.partition("/")[2] or key


def option_of(key: str) -> str:
    """Returns the name of the set with this key in a config."""
    return "data." + key.replace("/", ".")


def may_share(one: str, other: str) -> bool:
    """Says whether the sets with these keys may share images: OOD sets (a set and its halves), and covariate-shifted ones."""
    roles = {key.partition("/")[0] for key in (one, other) if "/" in key}
    return len(roles) == 1 and "/" in one and "/" in other
