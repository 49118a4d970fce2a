"""Draws by a hash of numbers: the same ones are drawn in whatever order, and in however many processes, they come."""

from __future__ import annotations

from torch import Tensor


def hash_of(numbers: Tensor, seed: int) -> Tensor:
    """Returns a number for each of `numbers` (…) int64, different for different ones (SplitMix64, Steele et al. 2014)."""
    x = numbers + _signed((seed + 1) * 0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return x


def drawn(numbers: Tensor, count: int, seed: int) -> Tensor:
    """Returns the `count` of some different `numbers` (n,) int64 that have the smallest hashes, or all of them, in ascending order.

    >>> import torch
    >>> drawn(torch.arange(100), 4, seed=0)
    tensor([15, 17, 34, 79])
    """
    return numbers[hash_of(numbers, seed).argsort()[:count]].sort().values


def _signed(value: int) -> int:
    value %= 1 << 64
    return value - (1 << 64) if value >> 63 else value
