"""Sets smaller learning rates for earlier layers of any image tower."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from clip_ood.errors import UserError

BLOCK = re.compile(r"(?:^|.*\.)(?:resblocks|blocks|layers|layer|stages)\.?\d+(?:\.(?:blocks\.)?\d+(?=\.))?")


def depths(tower: nn.Module) -> dict[str, int]:
    """Returns the depth of every parameter: 0 before the first block, i + 1 in block i, one more after the last.

    Raises: ValueError for a tower in which no blocks are found.
    """
    names = [name for name, _ in tower.named_parameters()]
    block = {name: found.group() for name in names if (found := BLOCK.match(name))}
    order = {key: number for number, key in enumerate(dict.fromkeys(block.values()), start=1)}
    if not order:
        raise UserError(f"{type(tower).__name__} shows no blocks; set method.finetune.layer_decay to 1")
    first = next(index for index, name in enumerate(names) if name in block)
    return {
        name: order[block[name]] if name in block else 0 if index < first else len(order) + 1
        for index, name in enumerate(names)
    }


def parameter_groups(
    tower: nn.Module, head: nn.Module, lr: float, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Returns optimizer groups with learning rate lr · layer_decay^(depth of the head − depth).

    Only matrices have weight decay: not vectors, tokens (1, 1, D), and parameters that the tower exempts (position embeddings).
    """
    trained = [(name, parameter) for name, parameter in tower.named_parameters() if parameter.requires_grad]
    depth = dict.fromkeys((name for name, _ in trained), 0) if layer_decay == 1 else depths(tower)
    top = max(depth.values()) + 1
    exempt = _without_decay(tower)
    placed = [(depth[name], parameter, name not in exempt) for name, parameter in trained]
    placed += [(top, parameter, True) for parameter in head.parameters()]
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for level, parameter, may_decay in placed:
        decayed = may_decay and parameter.squeeze().ndim > 1
        settings = {"lr": lr * layer_decay ** (top - level), "weight_decay": weight_decay if decayed else 0.0}
        groups.setdefault((level, decayed), {"params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def _without_decay(tower: nn.Module) -> set[str]:
    """Returns the full names of parameters that open_clip and timm models exempt from weight decay."""
    return {
        f"{place}.{name}".lstrip(".")
        for place, module in tower.named_modules()
        if hasattr(module, "no_weight_decay")
        for name in module.no_weight_decay()
    }
