"""Divides inputs into batches, and batches into parts, each of which has the same images whoever judges it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from itertools import islice

from clip_ood.data.fetched_ahead import with_versions
from clip_ood.data.inputs import Source
from clip_ood.detect.batches import SourceBatch

MANY = 16  # times a batch's images: this many sources end a batch, if few of them are images
IsWhole = Callable[[int, Sequence[Source]], bool]  # says whether a part is there, made of these sources


def part_batches(
    inputs: Iterable[Source],
    size: int,
    per_part: int,
    is_whole: IsWhole,
    rank: int = 0,
    world: int = 1,
    joins: bool = True,
) -> Generator[SourceBatch, None, int]:
    """Yields the batches of those parts that are not whole yet, and returns the number of all parts.

    A part has `per_part` batches of `size` images; parts are dealt in turn, and these are those of `rank` among `world`. Who joins the
    parts asks for all of them whether they are whole. Objects get the versions of now, by which a part of former ones is known.
    """
    batches, number = divided(inputs, size), 0
    while part := list(islice(batches, per_part)):
        mine = number % world == rank
        if mine or joins:
            part = [with_versions(batch) for batch in part]
        everything = [source for batch in part for source in batch]
        whole = (mine or joins) and is_whole(number, everything)
        if mine and not whole:
            for place, batch in enumerate(part):
                yield SourceBatch(tuple(batch), number, place == len(part) - 1)
        number += 1
    return number


def divided(inputs: Iterable[Source], size: int) -> Iterator[list[Source]]:
    """Yields batches of `size` images; sources that are known to be no images are added without taking a place."""
    batch: list[Source] = []
    images = 0
    for source in inputs:
        batch.append(source)
        images += source.reason is None
        if images == size or len(batch) == MANY * size:
            yield batch
            batch, images = [], 0
    if batch:
        yield batch
