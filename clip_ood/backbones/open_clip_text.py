"""Runs an open_clip text tower on token embeddings that were changed, so that gradients reach what has changed them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from open_clip.hf_model import HFTextEncoder
from torch import Tensor, nn
from torch.func import functional_call

Change = Callable[[Tensor], Tensor]  # token embeddings (K, L, W) -> (K, L, W)


def token_embedding(model: nn.Module) -> nn.Module:
    """Returns the layer that turns tokens (K, L) into token embeddings (K, L, W)."""
    tower = _tower(model)
    return tower.transformer.get_input_embeddings() if isinstance(tower, HFTextEncoder) else tower.token_embedding


def encode_changed(model: nn.Module, tokens: Tensor, change: Change) -> Tensor:
    """Returns what the text tower gives for tokens (K, L) after `change` of their embeddings: (K, E), of any norm.

    Positions after the end of the longest text, which have no influence, are left out before `change` sees them.
    """
    tower = _tower(model)
    tokens, buffers = _without_rest(tower, tokens)
    with _changing(token_embedding(model), change):
        if tower is model:  # its forward is that of both towers
            given = functional_call(model, buffers, kwargs={"text": tokens})
            return given["text_features"] if isinstance(given, dict) else given[1]
        given = functional_call(tower, buffers, (tokens,))
    return given[0] if isinstance(given, tuple) else given  # CoCa's tower gives tokens as well


def without_padding(tower: HFTextEncoder, tokens: Tensor) -> Tensor:
    """Returns tokens (K, L) without the padding at the end that all texts share, which the tower masks."""
    return tokens[:, : int((tokens != tower.config.pad_token_id).any(dim=0).nonzero().max()) + 1]


def _tower(model: nn.Module) -> nn.Module:
    return getattr(model, "text", model)


def _without_rest(tower: nn.Module, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns tokens up to the end of the longest text, with the tower's position embeddings and mask of that length.

    With a causal mask, the embedding of a text, which is taken at its end, does not depend on what comes after it.
    """
    if isinstance(tower, HFTextEncoder):
        return without_padding(tower, tokens), {}
    pooling = getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None)
    if tower.attn_mask is None or getattr(tower, "cls_emb", None) is not None or pooling not in ("argmax", "eos"):
        return tokens, {}
    last = getattr(tower, "text_eos_id", None) or getattr(tower, "eos_id", None)
    ends = tokens.argmax(dim=1) if pooling == "argmax" else (tokens == last).int().argmax(dim=1)
    length = int(ends.max()) + 1
    shorter = {
        "positional_embedding": tower.positional_embedding[:length],
        "attn_mask": tower.attn_mask[:length, :length],
    }
    return tokens[:, :length], shorter


@contextmanager
def _changing(layer: nn.Module, change: Change) -> Iterator[None]:
    hook = layer.register_forward_hook(lambda _, given, embedded: change(embedded))
    try:
        yield
    finally:
        hook.remove()
