"""Maximum concept matching on several layers, which the entropy of their scores on ID training images chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain, combinations, islice
from math import comb
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.detectors.detector import Detector
from clip_ood.detectors.draws import hash_of
from clip_ood.detectors.exchange import Exchange
from clip_ood.detectors.mcm import CELLS, TextDetector, largest_softmax
from clip_ood.detectors.statistic import Statistic
from clip_ood.errors import UserError
from clip_ood.outputs import Outputs, Reference

MOST_COMBINATIONS = 200_000  # of layers: those of up to four of 47 beside the last
VALUES = 2**22  # scores of combinations that are worked on at once


class Drawn(Statistic):
    """What a function gives for ID training images, (n, L), of which at most `images` are drawn: those whose index has the smallest hash.

    Raises: UserError where some of more images came without their index.
    """

    def __init__(self, function: Callable[[Outputs], Tensor], images: int, seed: int) -> None:
        super().__init__()
        self.function, self.images, self.seed = function, images, seed
        self._values: list[Tensor] = []
        self._indices: list[Tensor] = []

    def key(self) -> int:
        return id(self)

    def draw(self) -> Tensor:
        """Returns the values (m, L) of the drawn images, which are those of all processes together."""
        values, indices = (torch.cat(self.exchange.gather(torch.cat(each))) for each in (self._values, self._indices))
        if len(values) <= self.images:
            return values
        if (indices < 0).any():
            raise UserError("a draw of images needs the indices of all, and some came without")
        return values[hash_of(indices, self.seed).argsort()[: self.images]]

    def _update(self, rows: Outputs) -> None:
        values = self.function(rows)
        self._values.append(values)
        given = torch.full((len(rows),), -1) if rows.indices is None else rows.indices
        self._indices.append(given.to(values.device))

    def _join(self, exchange: Exchange) -> None:
        pass  # `draw` looks at those of all processes


class LayeredMCM(TextDetector):
    """The mean over some layers ℓ of MCM's score of each: (1 / |C|) Σ_{ℓ ∈ C} max_c softmax(cos(h_ℓ, t_c) / τ).

    The key layer names the layers that may take part (3+6+9); the last, with the embeddings h of MCM, always does. h_ℓ = (g_ℓ, 1) A
    of the features g_ℓ (N, D) of a layer; A: the reference's projection (D + 1, E). A layer of another width D_ℓ, as those of a
    convolutional network are, is projected by a random matrix (D_ℓ, E) drawn with `seed`. t: text embeddings (C, E); τ: `tau` > 0.
    C is, of all choices of at most `most` layers, the one with the lowest entropy −Σ_b p_b log p_b: p are the shares of ID training images
    in a histogram of their scores, with `bins` bins of equal width from the lowest to the highest. A choice that gives all images
    one score is never taken; of several with the lowest entropy, the first, with the fewest layers, is. The entropy is that of at most
    `images` images, which are drawn by `seed`.
    Raises ValueError for parameters out of range, without the key layer, for too many choices, and without ID training images.
    De la Jara et al., 2025 (arXiv 2510.05782): τ = 1, at most 5 layers, and stable from 16 to 128 bins. The paper does not say where
    the bins begin and end; from 0 to 1, all scores at τ = 1 would lie in one.
    """

    name: ClassVar[str] = "layered_mcm"
    requires: ClassVar[tuple[str, ...]] = ("features", "embeddings", "text_embeddings", "projection")
    least_classes: ClassVar[int] = 2
    needs_layer: ClassVar[bool] = True

    def __init__(
        self,
        reference: Reference | None = None,
        *,
        most: int = 5,
        bins: int = 64,
        tau: float = 1.0,
        images: int = 50_000,
        seed: int = 0,
    ) -> None:
        super().__init__(reference)
        for key, value, least in (("most", most, 1), ("bins", bins, 2), ("images", images, 1)):
            if value < least:
                raise self._error(f"{key} = {value}, expected {least} or more")
        if not tau > 0:
            raise self._error(f"tau = {tau}, expected a number above 0")
        self.most, self.bins, self.tau, self.seed = most, bins, tau, seed
        self._widths: dict[str, int] = {}  # of layers
        self.scores = Drawn(self._of_layers, images, seed)
        self.register_buffer("projection", self.reference.projection.float(), persistent=False)
        self._random: dict[tuple[str, int], Tensor] = {}  # by layer and width, of those that are not as wide as g
        self.register_buffer(
            "chosen", None
        )  # (m, 2) int64, number and width of the layers that take part beside the last

    def on(self, layer: str) -> Detector:
        count = len(layer.split("+"))
        choices = sum(comb(count, size) for size in range(min(self.most, count + 1)))
        if choices > MOST_COMBINATIONS:
            raise self._error(
                f"{count} layers make {choices:,} choices of at most {self.most}, and {MOST_COMBINATIONS:,} are tried: name fewer layers, or "
                "lower most"
            )
        return super().on(layer)

    def at_once(self, rows: Outputs) -> int:
        return CELLS // len(self.text)

    def _fit(self) -> None:
        scores = self.scores.draw()  # (m, L), the last layer's in the last column
        if not len(scores):
            raise self._error("no ID training image was taken in; expected at least one")
        names = self._names()
        chosen = lowest_entropy(scores, self.most, self.bins)
        self.chosen = (
            torch.tensor([(int(names[place]), self._widths[names[place]]) for place in chosen]).long().view(-1, 2)
        )
        told = ", ".join(names[place] for place in chosen) or "none"
        self.notes.append(f"beside the last layer: {told}, by the entropy of {len(scores):,} ID training images")

    def traceable(self) -> Callable[[Outputs], Tensor]:
        self.check_fitted()
        names = self._taken()
        for name, width in zip(names, self.chosen[:, 1].tolist(), strict=True):
            self._matrix(name, width)
        return lambda rows: self._of_layers(rows, names).mean(dim=1)

    def _score(self, rows: Outputs) -> Tensor:
        return self._of_layers(rows, self._taken()).mean(dim=1)

    def _taken(self) -> list[str]:
        return [str(number) for number in self.chosen[:, 0].tolist()]

    def _names(self) -> list[str]:
        return self.layer.split("+")

    def _of_layers(self, rows: Outputs, names: Sequence[str] | None = None) -> Tensor:
        """Returns MCM's scores (n, L) of some layers, or all that are named, and of the last."""
        layers = [self._projected(rows.layers[name], name) for name in (self._names() if names is None else names)]
        text = self.text.to(rows.embeddings.device)
        each = (normalize(h.float(), dim=1) @ text.T for h in (*layers, rows.embeddings))
        return torch.stack([largest_softmax(cosines, self.tau) for cosines in each], dim=1)

    def _projected(self, features: Tensor, name: str) -> Tensor:
        """Returns h_ℓ (n, E) of a layer's features (n, D_ℓ), not normalised."""
        width = self._widths[name] = features.shape[1]
        matrix = self._matrix(name, width).to(features.device)
        return torch.addmm(matrix[-1], features.float(), matrix[:-1])  # (n, D_ℓ) @ (D_ℓ, E)

    def _matrix(self, name: str, width: int) -> Tensor:
        """Returns A (D + 1, E), or a random matrix for a layer of another width, whose last row is zero."""
        if width == len(self.projection) - 1:
            return self.projection
        if (name, width) not in self._random:
            generator = torch.Generator().manual_seed(hash_of(torch.tensor(int(name)), self.seed).item())
            rows = torch.randn(width, self.projection.shape[1], generator=generator)
            self._random[name, width] = torch.cat([rows, torch.zeros_like(rows[:1])])
        return self._random[name, width]


def lowest_entropy(scores: Tensor, most: int, bins: int) -> tuple[int, ...]:
    """Returns the columns, beside the last, whose mean with the last has the lowest entropy of all choices of at most `most` columns.

    scores: (n, L) float64; the entropy is that of a histogram with `bins` bins from the lowest to the highest mean of images.
    """
    columns = range(scores.shape[1] - 1)
    choices = chain.from_iterable(combinations(columns, size) for size in range(min(most, len(columns) + 1)))
    best, lowest = (), torch.inf
    while block := list(islice(choices, max(1, VALUES // max(1, len(scores))))):
        shares = scores.new_zeros(scores.shape[1], len(block))
        for place, choice in enumerate(block):
            shares[[*choice, -1], place] = 1 / (len(choice) + 1)
        entropies = histogram_entropy(scores @ shares, bins)
        place = int(entropies.argmin())
        if entropies[place] < lowest:
            best, lowest = block[place], float(entropies[place])
    return best


def histogram_entropy(values: Tensor, bins: int) -> Tensor:
    """Returns −Σ_b p_b log p_b (k,) of histograms of each column of values (n, k), infinite for a column whose values are all equal.

    >>> histogram_entropy(torch.tensor([[0.0, 1.0], [0.0, 1.0], [1.0, 1.0], [4.0, 1.0]], dtype=torch.float64), 2)
    tensor([0.5623,    inf], dtype=torch.float64)
    """
    low, high = values.aminmax(dim=0)
    widths = torch.where(high > low, high - low, 1)
    places = ((values - low) / widths * bins).long().clamp_(max=bins - 1)  # the last bin has both its ends
    places += bins * torch.arange(values.shape[1], device=values.device)
    shares = places.flatten().bincount(minlength=bins * values.shape[1]).view(-1, bins).to(values) / len(values)
    return torch.where(high > low, -torch.xlogy(shares, shares).sum(dim=1), torch.inf)
