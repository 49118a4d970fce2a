"""What an image tower computes on its way to g: the outputs of its layers, and tokens of its patches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import linear

from clip_ood.errors import UserError
from clip_ood.outputs import Inside

VALUE, OUTPUT = "value", "output"  # kinds of patch tokens


def run_inside(tower: nn.Module, images: Tensor, wanted: Inside) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Returns g (B, D) of images (B, 3, H, W), the features (B, D_l) of layers, and tokens (B, P, D), each by its name.

    Layers are numbered from 1: the blocks of a transformer, or the stages of a convolutional network. The features of a block are
    its tokens, normalised and pooled as those of the last block are, so that the last layer is g; those of a stage are the mean over
    its positions. Tokens are still to be projected into the joint space as g is, where there is one:

    - output: the last block's output of each patch, after the last norm; of a convolutional network, each position of its last map
    - value: the patch as the last attention would see it if it looked at nothing else: its value and out projections with the residual
      and MLP around them, then the last norm (Miyai et al., arXiv 2304.04521). In an attention-pooled ResNet, the value and output
      projections of the pooling alone. Where a tower pools by a mean or by attention after its last layer, the pooling of one patch
      alone, which is `output` too.

    Raises: UserError for what this tower does not have.
    """
    places = _layers(tower, wanted)
    watched: dict[str, tuple[nn.Module, Callable]] = {
        name: (places[int(name) - 1], lambda _, made: _pooled(tower, made)) for name in wanted.layers
    }
    last = places[-1]
    if wanted.tokens:
        watched[""] = last, lambda given, made: (given, made)
    with watching(watched) as seen:
        final, features = _forward(tower, images)
    tokens = {kind: _tokens(tower, kind, last, *seen[""], final) for kind in wanted.tokens}
    return features, {name: seen[name] for name in wanted.layers}, tokens


def check_inside(tower: nn.Module, wanted: Inside, name: str) -> None:
    """Raises UserError if an image tower does not have what is wanted; `name` is the encoder's."""
    if not wanted:
        return
    count = len(_layers(tower, wanted, name))
    for layer in wanted.layers:
        if not 1 <= int(layer) <= count:
            raise UserError(f"detectors: layer {layer}: {name} has layers 1 to {count}")
    for kind in wanted.tokens:
        _check_tokens(tower, kind, name)


@contextmanager
def watching(modules: Mapping[str, tuple[nn.Module, Callable[[Tensor, Tensor], Any]]]) -> Iterator[dict[str, Any]]:
    """Yields a function of the first input and the output of each module, by its name, which is there once the module has run.

    Nothing else of a module is kept: the whole output of a layer would hold memory that the next layer would have used again.
    """
    seen: dict[str, Any] = {}

    def note(name: str, function: Callable[[Tensor, Tensor], Any]) -> Callable:
        def hook(module: nn.Module, given: tuple, made: Tensor | tuple) -> None:
            seen[name] = function(given[0], made[0] if isinstance(made, tuple) else made)

        return hook

    handles = [module.register_forward_hook(note(name, function)) for name, (module, function) in modules.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _trunk(tower: nn.Module) -> nn.Module:
    """Returns the model of timm in a tower, or the tower itself, as that of transformers, which has timm's names."""
    return getattr(tower, "trunk", None) or getattr(tower, "model", None) or tower


def _is_vit(tower: nn.Module) -> bool:
    """Says whether a tower is open_clip's own transformer."""
    return hasattr(getattr(tower, "transformer", None), "resblocks")


def _layers(tower: nn.Module, wanted: Inside, name: str | None = None) -> list[nn.Module]:
    if _is_vit(tower):
        return list(tower.transformer.resblocks)
    if hasattr(tower, "attnpool"):  # open_clip's own ResNet
        return [tower.layer1, tower.layer2, tower.layer3, tower.layer4]
    trunk = _trunk(tower)
    described = getattr(trunk, "feature_info", None)
    if not described or not hasattr(trunk, "forward_features"):
        what = ", ".join(wanted.arrays)
        raise UserError(
            f"{name or type(trunk).__name__} does not show what it computes inside ({what}): take an encoder of open_clip or timm, or a "
            "model of transformers that is one list of blocks with attention, or of convolutional stages"
        )
    described = described if isinstance(described, list) else described.info
    return [trunk.get_submodule(each["module"]) for each in described]


def _forward(tower: nn.Module, images: Tensor) -> tuple[Tensor | None, Tensor]:
    """Returns what a model of timm gives before its pooling, None for other towers, and g."""
    if _is_vit(tower) or hasattr(tower, "attnpool"):
        features = tower(images)
        return None, features[0] if isinstance(features, tuple) else features  # CoCa's tower gives tokens as well
    final = _trunk(tower).forward_features(images)
    return final, _head(tower, final)


def _head(tower: nn.Module, final: Tensor) -> Tensor:
    """Returns g of what a model of timm gives before its pooling."""
    if hasattr(tower, "pool_tokens"):
        return tower.pool_tokens(final)
    pooled = _trunk(tower).forward_head(final)
    return tower.head(pooled) if hasattr(tower, "trunk") else pooled


def _pooled(tower: nn.Module, value: Tensor) -> Tensor:
    """Returns the features (B, D_l) of a layer's output: (B, N, D_l), (B, D_l, H, W) or, in some models, (B, H, W, D_l)."""
    if _is_vit(tower):
        return tower._pool(value if tower.transformer.batch_first else value.transpose(0, 1))[0]
    trunk = _trunk(tower)
    if value.ndim == 4:
        return value.mean(dim=(1, 2) if getattr(trunk, "output_fmt", "NCHW") == "NHWC" else (2, 3))
    if hasattr(trunk, "norm") and value.shape[-1] == trunk.num_features:
        return _head(tower, trunk.norm(value))
    return value.mean(dim=1)


def _check_tokens(tower: nn.Module, kind: str, name: str) -> None:
    """Raises UserError if a tower has no tokens of a kind."""
    if kind not in (VALUE, OUTPUT):
        raise UserError(f"tokens: {kind!r}, expected {VALUE} or {OUTPUT}")
    if _is_vit(tower):
        if tower.attn_pool is not None or tower.pool_type == "none":
            raise UserError(f"tokens: {name} pools its patches by attention in a way of its own and gives no tokens")
        if kind == VALUE and not hasattr(getattr(tower.transformer.resblocks[-1], "attn", None), "in_proj_weight"):
            raise UserError(f"tokens: {VALUE}: the attention of {name} has no value path of its own; take {OUTPUT}")
        return
    if hasattr(tower, "attnpool"):
        if kind == OUTPUT:
            raise UserError(f"tokens: {OUTPUT}: the patches of {name} reach the joint space by {VALUE} alone; take it")
        return
    if "pool" in getattr(getattr(tower, "head", None), "_modules", {}):
        raise UserError(f"tokens: {name} pools its patches by attention in a way of its own and gives no tokens")
    last = _layers(tower, Inside(tokens=(kind,)), name)[-1]
    if kind == VALUE and _pools_by_class(tower) and not _is_clip_block(last):
        raise UserError(
            f"tokens: {VALUE}: {name} pools by its class token, whose value path is known for open_clip's own transformers and "
            f"transformers' CLIP alone; take {OUTPUT}"
        )


def _pools_by_class(tower: nn.Module) -> bool:
    """Says whether a model of timm or transformers makes g of its class token."""
    pools = getattr(tower, "pooling", None) or getattr(_trunk(tower), "global_pool", "")
    return isinstance(pools, str) and ("cls" in pools or "token" in pools)


def _is_clip_block(block: nn.Module) -> bool:
    """Says whether a block is that of transformers' CLIP."""
    return hasattr(block, "layer_norm1") and hasattr(getattr(block, "self_attn", None), "v_proj")


def _tokens(tower: nn.Module, kind: str, last: nn.Module, given: Tensor, made: Tensor, final: Tensor | None) -> Tensor:
    """Returns tokens (B, P, D) by what the last layer was given, what it made, and what came before the pooling."""
    if _is_vit(tower):
        value = made if kind == OUTPUT else given
        value = (value if tower.transformer.batch_first else value.transpose(0, 1))[:, 1:]
        return tower.ln_post(value if kind == OUTPUT else _value_path(last, value))
    if hasattr(tower, "attnpool"):
        return tower.attnpool.c_proj(tower.attnpool.v_proj(made.flatten(2).mT))
    if kind == VALUE and _pools_by_class(tower):
        final = tower.norm(_value_path(last, given))
    return _each_alone(tower, final)


def _value_path(block: nn.Module, tokens: Tensor) -> Tensor:
    """Returns a block's output (B, P, D) if each token of (B, P, D) looked at itself alone."""
    if _is_clip_block(block):
        tokens = tokens + block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(tokens)))
        return tokens + block.mlp(block.layer_norm2(tokens))
    width, attention = tokens.shape[-1], block.attn
    values = linear(block.ln_1(tokens), attention.in_proj_weight[-width:], attention.in_proj_bias[-width:])
    tokens = tokens + block.ls_1(attention.out_proj(values))
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


def _each_alone(tower: nn.Module, final: Tensor) -> Tensor:
    """Returns the pooling (B, P, D) of each patch or position alone of what a model of timm gives before it."""
    trunk = _trunk(tower)
    if final.ndim == 4 and getattr(trunk, "output_fmt", "NCHW") == "NHWC":
        final = final.permute(0, 3, 1, 2)
    if final.ndim == 4:
        positions = final.flatten(2).mT  # (B, P, D)
        alone = positions.flatten(0, 1)[:, :, None, None]
        if getattr(trunk, "output_fmt", "NCHW") == "NHWC":
            alone = alone.permute(0, 2, 3, 1)
    else:
        prefix = getattr(trunk, "num_prefix_tokens", 0)
        positions = final[:, prefix:]
        alone = positions.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)  # also where the pooling looks for a class
    return _head(tower, alone).unflatten(0, positions.shape[:2])
