"""Chooses negative labels, words that are far from the ID classes, by the text encoder itself.

NegLabel (Jiang et al. 2024, arXiv 2403.20078) takes nouns and adjectives as they are; the conjugated semantic pool
(Chen et al. 2024, arXiv 2410.08611) joins each adjective to a noun for a whole kind of things; EOE (Cao et al. 2024, arXiv 2406.00806)
takes nouns for classes. Prompts and constants are those of the authors' code (XueJiang16/NegLabel, MengyuanChen21/NeurIPS2024-CSP,
Aboriginer/EOE). CLIPScope (Fu et al. 2024, arXiv 2405.14737)
takes the nearest words as well as the farthest, and InterNeg (Xu et al. 2026) measures from images instead of class names.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from clip_ood.backbones.backbone import unit
from clip_ood.errors import UserError
from clip_ood.outputs import NegativeLabels
from clip_ood.texts.prompts import Phrases
from clip_ood.texts.wordnet import Words, plain

SHARE = 0.15  # of the candidates are kept
QUANTILE = 0.95  # over ID classes: a word may be near to a few of them
FARTHEST, BOTH_ENDS, GIVEN = "farthest", "nearest_and_farthest", "given"  # values of data.negative_choice
FROM_IMAGES = "farthest_from_images"  # another one
SAME = 0.95  # cosine above which CSP takes a candidate for an ID class
SUPERCLASSES = (
    *("environment", "space", "object", "scene", "place", "item", "area"),
    *("view", "thing", "pattern", "structure", "landscape", "vista", "creature"),
)
NICE = ("the nice {}",)
PHOTO = ("a photo of a {}",)
NOUN_PROMPTS = (
    *("{}", "the {}", "the good {}", *NICE),
    *(f"a {kind} the nice {{}}." for kind in ("photo of", "photo with", "close-up photo of", "good photo with")),
)
PHRASE_PROMPTS = ("{}", "a nice photo of {}", "a good photo of {}", "a close-up photo of {}")


@dataclass(frozen=True)
class Pool:
    """What a detector chooses its negative labels from, and the ID classes as it names them.

    Attributes: same, the cosine to an ID class above which a candidate is left out (None: none is); keeps_classes, whether the
    name of a class may be chosen; choice, the rule of data.negative_choice.
    """

    classes: Phrases
    nouns: Phrases
    adjectives: Phrases
    same: float | None = None
    keeps_classes: bool = False
    choice: str = FARTHEST

    def raw(self) -> Pool:
        """Returns the same pool with raw averages over prompts."""
        parts = {part: replace(getattr(self, part), raw=True) for part in ("classes", "nouns", "adjectives")}
        return replace(self, **parts)


def neglabel_pool(words: Words, class_names: Sequence[str]) -> Pool:
    """Returns nouns and classes as "the nice {}", and adjectives as "This is a {} photo"."""
    adjectives = Phrases(words.adjectives, ("This is a {} photo",))
    return Pool(Phrases(tuple(class_names), NICE), Phrases(words.nouns, NICE), adjectives)


def csp_pool(words: Words, class_names: Sequence[str]) -> Pool:
    """Returns nouns and classes as means of eight prompts, and each adjective with drawn superclasses in four prompts."""
    joined = random.Random(0).choices(SUPERCLASSES, k=len(words.adjectives))
    phrases = tuple(f"{adjective} {noun}" for adjective, noun in zip(words.adjectives, joined, strict=True))
    nouns = Phrases(words.nouns, NOUN_PROMPTS)
    return Pool(Phrases(tuple(class_names), NOUN_PROMPTS), nouns, Phrases(phrases, PHRASE_PROMPTS), SAME)


def eoe_pool(words: Words, class_names: Sequence[str]) -> Pool:
    """Returns nouns and classes as "a photo of a {}", without adjectives, which name no class."""
    return Pool(Phrases(tuple(class_names), PHOTO), Phrases(words.nouns, PHOTO), Phrases((), PHOTO))


POOLS: dict[str, Callable[[Words, Sequence[str]], Pool]] = {
    "neglabel": neglabel_pool,
    "csp": csp_pool,
    "eoe": eoe_pool,
}


def are_classes(words: Sequence[str], class_names: Sequence[str]) -> Tensor:
    """Says which words are class names, whatever the case, spaces or underscores: (W,) bool.

    >>> are_classes(["Sea urchin", "shovel"], ["sea_urchin"])
    tensor([ True, False])
    """
    known = {plain(name).casefold() for name in class_names}
    return torch.tensor([plain(word).casefold() in known for word in words], dtype=torch.bool)


def select(
    candidates: Iterable[Tensor],
    classes: Tensor,
    dropped: Tensor,
    same: float | None = None,
    choice: str = FARTHEST,
    images: Tensor | None = None,
) -> Tensor:
    """Returns the positions of the `SHARE` of candidates that are farthest from the classes, farthest first: (k,) int64.

    The nearness of a candidate w is the `QUANTILE` of cos(w, t_c) over classes c, interpolated linearly; equally near ones
    keep their order. k = max(1, ⌊0.15 W⌋) of W candidates, or fewer if too many have a class with cos(w, t_c) > `same`.
    With `BOTH_ENDS`, the last ⌊k / 2⌋ of the k are the nearest instead; with `GIVEN`, all W are returned in their order. With
    `FROM_IMAGES`, the nearness of w is the mean of cos(w, v_c), and only words with cos(w, v_c) < cos(t_c, v_c) for each class count.
    candidates: (n, E) each; dropped: (all rows,) bool, those that do not count among the W; classes t: (C, E); images v: (C, E), the
    mean embeddings of each class's images, zero for a class without images, which is skipped.
    It is computed in float64, a chunk at a time.
    """
    if choice == GIVEN:
        return (~dropped).nonzero().squeeze(1)
    classes = _unit(classes)
    measure = partial(_nearness, classes, same)
    if choice == FROM_IMAGES:
        seen = (images != 0).any(dim=1)
        measure = partial(_nearness_to_images, classes[seen.to(classes.device)], _unit(images[seen]).to(classes.device))
    nearness = (
        torch.cat([measure(_unit(chunk.to(classes.device))) for chunk in candidates])
        .cpu()
        .masked_fill(dropped, torch.inf)
    )
    order = nearness.argsort(stable=True)[: int(nearness.isfinite().sum())]
    count = min(max(1, int(SHARE * int((~dropped).sum()))), len(order))
    nearest = count // 2 if choice == BOTH_ENDS else 0
    return torch.cat([order[: count - nearest], order[len(order) - nearest :]])


def _nearness(classes: Tensor, same: float | None, candidates: Tensor) -> Tensor:
    """Returns the nearness (n,) float32 of unit candidates (n, E); equal candidates are equally near in chunks of any size.

    An infinite value is an ID class itself.
    """
    cosines = candidates @ classes.T  # (n, E) @ (E, C)
    nearness = cosines.quantile(QUANTILE, dim=1).float()
    return nearness if same is None else nearness.where(cosines.amax(dim=1) <= same, torch.inf)


def _nearness_to_images(classes: Tensor, images: Tensor, candidates: Tensor) -> Tensor:
    """Returns the nearness (n,) float32 of unit candidates (n, E) to images (C, E); infinite where a class is not nearer to its own."""
    cosines = candidates @ images.T  # (n, E) @ (E, C)
    nearer = (cosines >= (classes @ images.T).diagonal()).any(dim=1)
    return cosines.mean(dim=1).float().masked_fill(nearer, torch.inf)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.double(), dim=1)


def negative_labels(classes: Tensor, chosen: Sequence[Tensor], words: Sequence[str] = ()) -> NegativeLabels:
    """Returns the classes (C, E), and the chosen candidates, (k, E) each, one after the other, with their `words` in that order.

    Raises: ValueError if nothing was chosen.
    """
    negatives = torch.cat(list(chosen))
    if not len(negatives):
        raise UserError(
            "No negative words are left: all are class names or too near to one (docs/detectors.md). Name more words "
            "(data.negative_words, data.max_negative_words), or leave the detector out"
        )
    return NegativeLabels(unit(classes), unit(negatives), tuple(words))
