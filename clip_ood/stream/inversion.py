"""Inverts images into texts: a vector for each image, in the place of a word in prompts, which the text tower reads as it reads the image."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clip_ood.errors import UserError
from clip_ood.outputs import TextTower
from clip_ood.prompt_sets import PROMPT_SETS, templates

STD, RATE, DECAY = 0.02, 0.02, 0.01  # of the first vectors, and of AdamW
STAND_INS = "X", "Z"  # words of one token, in whose place the vectors are put
TEXTS = 256  # that the text tower reads at once


def invert(tower: TextTower, images: Tensor, steps: int, seed: int) -> Tensor:
    """Returns the unit-norm embeddings (n, E) float64 of texts that say the same as unit-norm images (n, E), on the images' device.

    A vector (W,) for each image begins as a draw of N(0, 0.02²), and AdamW (rate 0.02, weight decay 0.01) minimises in `steps` steps the mean of
    1 − ⟨h, t⟩, with t the text of one of CLIP's 80 prompts for ImageNet, drawn for each image and step, in which the vector stands for
    the class. The result is t as of the last step's prompts after it. All draws are by `seed`. The text tower stays as it is. Xu et al., 2026
    (arXiv 2603.02618), as in their code (ZhikangXu0112/InterNeg), after Baldrati et al., 2023.
    Raises UserError for an encoder that takes no token embeddings, and for one whose tokenizer hides a word of a prompt.
    """
    device = next(tower.parameters()).device
    tokens, places = (each.to(device) for each in _prompts(tower))  # (T, L), (T,)
    generator = torch.Generator().manual_seed(seed)
    width = tower.token_embeddings(tokens[:1]).shape[2]
    vectors = torch.nn.Parameter((STD * torch.randn(len(images), width, generator=generator)).to(device))
    drawn = torch.randint(len(tokens), (steps, len(images)), generator=generator).to(device)
    targets = images.to(device)
    parts = torch.arange(len(images), device=device).split(TEXTS)

    def read(prompts: Tensor, rows: Tensor) -> Tensor:
        prompts = prompts[rows]
        where = places[prompts][:, None, None].expand(-1, 1, width)  # (n, 1, W)
        texts = tower.encode_tokens(
            tokens[prompts], lambda embedded: embedded.scatter(1, where, vectors[rows][:, None].to(embedded.dtype))
        )
        return normalize(texts.double(), dim=1)

    optimizer = torch.optim.AdamW([vectors], lr=RATE, weight_decay=DECAY)
    for prompts in drawn:
        optimizer.zero_grad()
        for rows in parts:
            with torch.enable_grad():
                loss = (1 - (read(prompts, rows) * targets[rows]).sum(dim=1)).sum() / len(images)
            loss.backward()
        optimizer.step()
    return torch.cat([read(drawn[-1], rows) for rows in parts]).detach().to(images.device)


def _prompts(tower: TextTower) -> tuple[Tensor, Tensor]:
    """Returns the tokens (T, L) of the prompts with a stand-in, and its position (T,) in each, where another word changes the token."""
    tokens, others = (tower.tokenize([prompt.replace("{}", word) for prompt in _of_imagenet()]) for word in STAND_INS)
    differs = tokens != others
    if (differs.sum(dim=1) != 1).any():
        raise UserError(
            "Images cannot be inverted into texts by this encoder: its tokenizer does not keep a word as one token. Leave interneg out"
        )
    return tokens, differs.int().argmax(dim=1)


@cache
def _of_imagenet() -> tuple[str, ...]:
    return tuple(templates(PROMPT_SETS["openai_80"]))
