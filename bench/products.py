"""Heads and scores of texts on stored outputs, over a matrix product of their size: python -m bench.products

A head's logits are summed in float64, so that an image alone has the logits it has among thousands: they are held against a
float64 product. All others are held against a float32 product.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from bench import chosen, seconds, spread
from clip_ood.detectors.build import build_detectors
from clip_ood.head import head_logits
from clip_ood.outputs import NegativeLabels, Outputs, Reference


class Sizes(NamedTuple):
    images: int = 8192
    classes: int = 1000
    width: int = 768
    joint: int = 512
    words: int = 20_000
    outliers: int = 500
    repeats: int = 5


DOUBLE = "logits of a head"
TINY = Sizes(64, 4, 16, 8, 200, 5, 1)


def main(sizes: Sizes) -> None:
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    text, words = (normalize(drawn(n, sizes.joint), dim=1) for n in (sizes.classes, sizes.words))
    negatives, outliers = NegativeLabels(text, words), NegativeLabels(text, words[: sizes.outliers])
    weight, bias = drawn(sizes.classes, sizes.width) / sizes.width, torch.zeros(sizes.classes)
    reference = Reference(None, text, 100.0, weight, bias, negatives, negatives, -10.0, outliers, outliers)
    features, labels = drawn(sizes.images, sizes.width), torch.randint(sizes.classes, (sizes.images,))
    embeddings = normalize(drawn(sizes.images, sizes.joint), dim=1)
    outputs = Outputs(features, embeddings, features @ weight.T, labels, torch.arange(sizes.images))
    with_words, with_outliers = torch.cat([text, words]), torch.cat([text, outliers.negatives])
    names = {"mcm": text, "neglabel": with_words, "csp": with_words, "eoe": with_outliers, "negprompt": with_outliers}
    names["nci"], names["mcm_sigmoid"] = weight, text
    detectors, _ = build_detectors(list(names), reference, {*vars(outputs), *vars(reference)})
    for detector in detectors.values():
        detector.update(outputs)
        detector.fit()
    works = {name: (lambda each=each: each.score(outputs)) for name, each in detectors.items()}
    works[DOUBLE] = lambda: head_logits(features, weight, bias)
    sides = {name: (embeddings, other) for name, other in names.items()}
    sides |= {"nci": (features, weight), DOUBLE: (features.double(), weight.double())}
    for name, work in works.items():
        rows, columns = sides[name]
        ratios = [seconds(work) / seconds(partial(torch.matmul, rows, columns.T)) for _ in range(1 + sizes.repeats)][1:]
        print(
            f"{name}, {len(rows)} x {len(columns)} x {rows.shape[1]}, time over a {str(rows.dtype).removeprefix('torch.')} product  "
            f"{spread(ratios)}  <= 1.5"
        )


if __name__ == "__main__":
    main(chosen(Sizes(), TINY))
