"""Turns names and words into text prototypes: prompts are filled in, embedded and averaged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_ood.backbones.backbone import unit


@dataclass(frozen=True)
class Phrases:
    """Words, each of which is embedded as the mean over prompts: of their unit-norm embeddings or, `raw`, of what the text tower gives."""

    words: tuple[str, ...]
    prompts: tuple[str, ...]
    raw: bool = False


def fill(prompts: Sequence[str], class_names: Sequence[str]) -> list[str]:
    """Fills every class name into every prompt, with all prompts of the first class first.

    >>> fill(["a {}.", "the {}."], ["cat", "dog"])
    ['a cat.', 'the cat.', 'a dog.', 'the dog.']
    """
    return [prompt.replace("{}", name) for name in class_names for prompt in prompts]


def prototypes(embeddings: Tensor, num_prompts: int, names: Sequence[int] | None = None) -> Tensor:
    """Returns t_c, the normalised mean of a class's normalised prompt embeddings: (C · P, E) -> (C, E).

    With `names`, class c has names[c] of them, each filled into every prompt: (Σ names · P, E) -> (C, E).
    """
    sums = unit(embeddings).unflatten(0, (-1, num_prompts)).sum(dim=1)  # (C, E)
    if names is not None:
        counts = torch.tensor(names, device=sums.device)
        of_class = torch.arange(len(names), device=sums.device).repeat_interleave(counts)
        sums = sums.new_zeros(len(names), sums.shape[1]).index_add_(0, of_class, sums)
    return unit(sums)
