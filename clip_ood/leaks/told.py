"""Words how many copies are in which sets, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SHOWN = 3  # pairs of sets in a line


def leaks_told(results: Mapping[str, Any]) -> list[str]:
    """Returns the lines about copies below a table, from `shared_images` and `dropped` of a results.json; of several seeds, each count
    is the largest."""
    shared = _most(results.get("shared_images") or [], ("kind", "earlier", "later"))
    exact = [each for each in shared if each.get("kind", "exact") != "near"]
    lines = _lines(exact, [each for each in shared if each.get("kind") == "near"])
    if (shared or results.get("dropped")) and "dropped" in results:  # older runs have no such file
        lines.append("Each copy is named in leaks.csv")
    return [*_dropped(results.get("dropped") or []), *lines]


def _lines(exact: Sequence[Mapping[str, Any]], near: Sequence[Mapping[str, Any]]) -> list[str]:
    across = [each for each in exact if _kind(each["earlier"]) != _kind(each["later"])]
    alike = [each for each in exact if _kind(each["earlier"]) == _kind(each["later"]) and not _within(each)]
    lines = []
    if across:
        lines.append(
            f"The same images stand in several sets: {_listed(across)}. Scores of such images say nothing about new ones: remove the "
            "copies (data.drop_duplicates), or name other images"
        )
    if alike:
        lines.append(
            f"Tested sets of one kind share images: {_listed(alike)}. A mean over these sets counts such images several times"
        )
    if within := [each for each in exact if _within(each)]:
        lines.append(
            f"The same image stands in one set several times: {_listed(within)}"
            + (
                ". A score counts such an image several times"
                if any(each["later"] != "train" for each in within)
                else ""
            )
        )
    if near:
        told = f"There are near copies (resized, saved anew or mirrored): {_listed(near)}"
        across = any(not _within(each) or each["later"] != "train" for each in near)
        more = ". Scores of such images say little about new images; data.drop_duplicates leaves them in"
        lines.append(told + (more if across else ""))
    return lines


def _dropped(dropped: Iterable[Mapping[str, Any]]) -> list[str]:
    out = [
        f"{each['images']:,} of the {each['total']:,} images of {each['set']}"
        for each in _most(dropped, ("set",))
    ]  # fmt: skip
    return [f"data.drop_duplicates has taken out {', '.join(out)}"] if out else []


def _kind(key: str) -> str:
    """Returns csid, ood, or the name of a set that is the only one of its kind."""
    return key.partition("/")[0]


def _within(each: Mapping[str, Any]) -> bool:
    return each["earlier"] == each["later"]


def _most(listed: Iterable[Mapping[str, Any]], keys: Sequence[str]) -> list[Mapping[str, Any]]:
    """Returns, of the entries of several seeds that agree in `keys`, the one with most images."""
    found: dict[tuple, Mapping[str, Any]] = {}
    for each in listed:
        key = tuple(each.get(name) for name in keys)
        if key not in found or found[key]["images"] < each["images"]:
            found[key] = each
    return list(found.values())


def _listed(shared: Sequence[Mapping[str, Any]]) -> str:
    several = "up to " if any("seed" in each for each in shared) else ""
    listed = [
        f"{several}{each['images']:,} of the {each['total']:,} images of {each['later']} {_where(each)}"
        for each in shared
    ]
    more = f", and {len(listed) - SHOWN} more pairs of sets share some" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more


def _where(each: Mapping[str, Any]) -> str:
    is_one, kind = each["images"] == 1, each.get("kind", "exact")
    copies = "a copy" if is_one else "copies"
    if kind == "near":
        copies = "a near copy" if is_one else "near copies"
    if kind == "corrupted":
        copies = "a corruption" if is_one else "corruptions"
    if _within(each):
        told = f"{copies} of others of it"
    else:
        told = f"also in {each['earlier']}" if kind == "exact" else f"{copies} of images of {each['earlier']}"
    return f"{'is' if is_one else 'are'} {told}"
