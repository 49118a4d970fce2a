"""Prompts whose context is learnt: vectors before, after or around a class name take the place of the embeddings of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from clip_ood.backbones.backbone import Backbone
from clip_ood.errors import UserError
from clip_ood.texts.prompts import prototypes

Place = Literal["end", "middle", "front"]  # of the class name
STD = 0.02  # of vectors that begin at random
STAND_INS = "X", "Z"  # words of one token, in whose place the vectors are put


class LearntPrompts(nn.Module):
    """Prompts [v_1] … [v_M] <name>. of C classes, whose context v (M, W) is learnt: of all classes alike, or of each (C, M, W).

    names: those of each class; a class with several has the normalised mean of their embeddings. The context begins with the token
    embeddings of the words `start` or, without them, as `length` draws of N(0, 0.02²) by `seed`. place: where the class name stands
    among the vectors. Source: Zhou et al. 2022, arXiv 2109.01134.
    Raises: UserError for words that are no tokens, and for a name that the tower's number of tokens leaves no room for.
    """

    def __init__(
        self,
        tower: Backbone,
        names: Sequence[Sequence[str]],
        length: int = 16,
        start: str | None = None,
        place: Place = "end",
        class_specific: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        begun = None if start is None else _embedded(tower, start)  # (M, W)
        length = length if begun is None else len(begun)
        self.counts = [len(of_class) for of_class in names]
        tokens, positions = _with_positions(tower, [name for of_class in names for name in of_class], length, place)
        self.register_buffer("tokens", tokens, persistent=False)  # (K, L)
        self.register_buffer("positions", positions, persistent=False)  # (K, M)
        if begun is None:
            width = tower.token_embeddings(tokens[:1].to(_device(tower))).shape[2]
            shape = (len(names), length, width) if class_specific else (1, length, width)
            begun = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * STD
        elif class_specific:
            begun = begun.repeat(len(names), 1, 1)
        self.context = nn.Parameter(begun.view(-1, length, begun.shape[-1]).clone())  # (1 or C, M, W)

    def forward(self, tower: Backbone, first: int = 0, last: int | None = None) -> Tensor:
        """Returns the unit-norm text embeddings of the classes from `first` to before `last`: (c, E), differentiable in the context."""
        counts = self.counts[first:last]
        start = sum(self.counts[:first])
        rows = slice(start, start + sum(counts))
        context = self.context
        if len(context) > 1:
            context = context[first:last].repeat_interleave(torch.tensor(counts, device=context.device), dim=0)
        places = self.positions[rows, :, None].expand(-1, -1, context.shape[2])  # (k, M) -> (k, M, W)
        context = context.expand_as(places)

        def put(embedded: Tensor) -> Tensor:  # (k, L, W)
            return embedded.scatter(1, places, context.to(embedded.dtype))

        return prototypes(tower.encode_tokens(self.tokens[rows], put), 1, counts)


def _with_positions(tower: Backbone, names: Sequence[str], length: int, place: Place) -> tuple[Tensor, Tensor]:
    """Returns the tokens (K, L) of the prompts with stand-ins, and the positions (K, M) of these, where another word changes the token."""
    tokens, others, longer = (
        tower.tokenize([_prompt(name, length, place, word) + end for name in names])
        for word, end in ((STAND_INS[0], ""), (STAND_INS[1], ""), (STAND_INS[0], " " + STAND_INS[0]))
    )
    differs = tokens != others
    cut = (tokens == longer).all(dim=1) | (differs.sum(dim=1) != length)
    if cut.any():
        raise UserError(
            f"The class {names[int(cut.nonzero()[0])]!r} and a context of {length} vectors do not fit the {tokens.shape[1]} tokens that "
            "this text tower reads: take a shorter context (method), or a shorter name (data.id.class_names)"
        )
    return tokens, differs.nonzero()[:, 1].view(len(names), length)


def _prompt(name: str, length: int, place: Place, stand_in: str) -> str:
    before = {"front": 0, "middle": length // 2, "end": length}[place]
    return " ".join([*[stand_in] * before, name, *[stand_in] * (length - before)]) + "."


def _embedded(tower: Backbone, words: str) -> Tensor:
    """Returns the token embeddings (M, W) of words, which stand in the tokens of a text up to where the word after them does."""
    after = [tower.tokenize([f"{words} {word}".strip() for word in STAND_INS]) for words in (words, "")]
    last, first = (int((one != other).nonzero()[0]) for one, other in after)
    if last <= first:
        raise UserError(f"A learnt context cannot start from {words!r}, which is no token to this encoder: give words")
    tokens = after[0][:1, first:last].to(_device(tower))
    return tower.token_embeddings(tokens)[0].detach().float().cpu()


def _device(tower: nn.Module) -> torch.device:
    return next(tower.parameters()).device
