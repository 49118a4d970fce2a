"""Entries of the feature store that are known by a name and hold its number."""

from __future__ import annotations

import torch

from clip_ood.features.identity import identity_of, pairs


def identities(names):
    return pairs([identity_of(str(name)) for name in names])


def row(name, width=3):
    """What the entry of a name holds."""
    return torch.full((width,), float(name))


def fill(entries, *groups, **more):
    """A segment a group of names."""
    return [
        entries.add(identities(group), {"features": torch.stack([row(n) for n in group])}, **more) for group in groups
    ]


def values(entries, names):
    rows = entries.rows(identities(names), ["features"])["features"]
    return rows.take(torch.arange(len(names)))[:, 0].tolist()
