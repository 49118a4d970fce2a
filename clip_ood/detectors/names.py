"""The names of detectors and how a config asks for them. No torch is imported, so that a typo is reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import prod
from typing import Any

from clip_ood.errors import UserError
from clip_ood.naming import fault, one_text, twins

DETECTORS: dict[str, str] = {  # name -> "module:Class"
    "knn": "clip_ood.detectors.knn:KNN",
    "local_knn": "clip_ood.detectors.local_knn:LocalKNN",
    "lof": "clip_ood.detectors.lof:LOF",
    "gaussian": "clip_ood.detectors.mahalanobis:Gaussian",
    "pca": "clip_ood.detectors.vim:PCA",
    "mcm": "clip_ood.detectors.mcm:MCM",
    "gl_mcm": "clip_ood.detectors.gl_mcm:GLMCM",
    "layered_mcm": "clip_ood.detectors.layered_mcm:LayeredMCM",
    "mcm_sigmoid": "clip_ood.detectors.mcm_sigmoid:MCMSigmoid",
    "neglabel": "clip_ood.detectors.negative_labels:NegLabel",
    "csp": "clip_ood.detectors.negative_labels:CSP",
    "negrefine": "clip_ood.detectors.negrefine:NegRefine",
    "eoe": "clip_ood.detectors.eoe:EOE",
    "negprompt": "clip_ood.detectors.neg_prompt:NegPrompt",
    "ensemble": "clip_ood.detectors.ensemble:Ensemble",
    "msp": "clip_ood.detectors.msp:MSP",
    "max_logit": "clip_ood.detectors.max_logit:MaxLogit",
    "energy": "clip_ood.detectors.energy:Energy",
    "gen": "clip_ood.detectors.gen:GEN",
    "kl_matching": "clip_ood.detectors.kl_matching:KLMatching",
    "mahalanobis": "clip_ood.detectors.mahalanobis:Mahalanobis",
    "rmd": "clip_ood.detectors.mahalanobis:RMD",
    "mahalanobis_logits": "clip_ood.detectors.mahalanobis:MahalanobisLogits",
    "rmd_logits": "clip_ood.detectors.mahalanobis:RMDLogits",
    "residual": "clip_ood.detectors.vim:Residual",
    "vim": "clip_ood.detectors.vim:ViM",
    "nnguide": "clip_ood.detectors.nnguide:NNGuide",
    "fdbd": "clip_ood.detectors.fdbd:FDBD",
    "she": "clip_ood.detectors.she:SHE",
    "nci": "clip_ood.detectors.nci:NCI",
}
STREAM_METHODS: dict[str, str] = {  # test-time methods, whose scores stand in a table of their own (evaluation.stream)
    "adaneg": "clip_ood.stream.adaneg:AdaNeg",
    "oodd": "clip_ood.stream.oodd:OODD",
    "clipscope": "clip_ood.stream.clipscope:CLIPScope",
    "interneg": "clip_ood.stream.interneg:InterNeg",
}

ABOUT = (
    "set",
    "role",
    "path",
    "path_bytes",
    "label",
    "prediction",
    "image",
)  # columns of scores.parquet that are no detector's
ZOO = "pytorch_ood."  # begins the names of detectors of the package pytorch-ood
NAMED: dict[
    str, dict[str, Any]
] = {  # scores that have a name of their own, so that one score has the same name everywhere
    "mahalanobis_pp": {"name": "mahalanobis", "normalize": True},  # Mahalanobis++
    "rmd_pp": {"name": "rmd", "normalize": True},
    "gaussian_pp": {"name": "gaussian", "normalize": True},
}
NOT_BY_DEFAULT = (
    "local_knn",
    "lof",
    "gaussian",
    "pca",
    "gl_mcm",
    "layered_mcm",
    "negrefine",
    "eoe",
    "negprompt",
    "nci",
)  # benchmarks keep the rows of their tables
DEFAULTS = [
    each
    for name in DETECTORS
    if name not in NOT_BY_DEFAULT
    for each in ([name, "mahalanobis_pp"] if name == "mahalanobis" else [name])
]
# Of a folder without classes: 1-NN judges new images, and the others are those that find odd images within a folder (bench/label_free.py)
UNLABELLED: list[str | dict[str, Any]] = ["knn", {"name": "lof", "k": 10}, {"name": "knn", "k": 0.2, "kth": True}]

LAYER = "layer"  # a parameter of every detector that works on features
MOST_CANDIDATES = 1000  # for one detector


@dataclass(frozen=True)
class Spec:
    """One detector as a config asks for it: `label` names its column, and `target` is its "module:Class".

    One of several candidates has its own label, and the column's name is in `chosen_as`.
    """

    name: str
    label: str
    target: str
    parameters: Mapping[str, Any]
    chosen_as: str | None = None

    @property
    def layer(self) -> str | None:
        """The layer whose features it works on, or layers with + between them; None stands for g."""
        return None if self.parameters.get(LAYER) is None else str(self.parameters[LAYER])

    def as_asked(self) -> dict[str, Any]:
        """Returns the entry of a config's list that asks for it alone."""
        return {"name": self.name, **self.parameters, "as": self.label}

    @property
    def own_parameters(self) -> dict[str, Any]:
        """The parameters of its class."""
        return {key: value for key, value in self.parameters.items() if key != LAYER}


def read_specs(specs: Sequence[str | Mapping[str, Any]] | None) -> list[Spec]:
    """Reads the requested detectors, each with a column name of its own.

    An entry is a name ("knn"), a detector of pytorch-ood ("pytorch_ood.NCI"), a class path ("my_pkg.scores.Mine") or a
    mapping {"name": "knn", "k": 50}, whose optional key "as" gives the column name. A name that is asked for more than once
    gets its parameters appended: knn_k50. A score that has a name of its own (`NAMED`) is always called by that name.
    The parameter layer asks for a detector of features to work on those of a layer, or of several together (4+8), and is part of
    the column's name. Parameters with lists of values, {"name": "knn", "k": [1, 5, 10]}, make candidates for one column: all combinations of them.
    None asks for `DEFAULTS`. Raises ValueError for an unknown name (and names the nearest), an entry
    without a name, an empty list, two equal column names, and a name that scores.parquet uses itself.
    """
    if specs is not None and not specs:
        raise UserError("detectors: the list is empty; name some, or leave the key out for the default ones")
    entries = [_entry(spec) for spec in (DEFAULTS if specs is None else specs)]
    times = Counter(name for name, _, _ in entries)
    columns = [
        label or _label(name, _shown(parameters, several=times[name] > 1)) for name, label, parameters in entries
    ]
    plain = Counter(map(one_text, columns))
    columns = [
        name
        if name.startswith(ZOO) and label is None and column != name and plain[one_text(column)] > times[name]
        else column
        for (name, label, _), column in zip(entries, columns, strict=True)
    ]
    specs = [
        spec
        for (name, _, parameters), column in zip(entries, columns, strict=True)
        for spec in _candidates(name, column, parameters)
    ]
    for column, count in Counter([*columns, *(spec.label for spec in specs if spec.chosen_as is not None)]).items():
        if count > 1:
            raise UserError(f"detectors: column {column!r} is asked for {count} times; tell them apart with 'as: …'")
        if one_text(column) in ABOUT:
            raise UserError(
                f"detectors: scores.parquet has a column {column!r} of its own; take another name ('as: …')"
            )
    if same := twins(dict.fromkeys([*columns, *(spec.label for spec in specs)])):
        raise UserError(
            f"detectors: columns {same[0]!r} and {same[1]!r} differ in case, blanks or Unicode's form alone; tell them apart with "
            "'as: …'"
        )
    return specs


def _candidates(name: str, column: str, parameters: Mapping[str, Any]) -> list[Spec]:
    several = {key: values for key, values in parameters.items() if isinstance(values, list)}
    if not several:
        return [Spec(name, column, _target(name), parameters)]
    if empty := [key for key, values in several.items() if not values]:
        raise UserError(f"detectors: {name}: {empty[0]} is an empty list; give values to choose from")
    if (count := prod(map(len, several.values()))) > MOST_CANDIDATES:
        raise UserError(
            f"detectors: {name}: its lists make {count:,} candidates ({', '.join(map(str, several))}), and at most {MOST_CANDIDATES:,} "
            "are tried: list fewer values"
        )
    combinations = [dict(zip(several, values, strict=True)) for values in product(*several.values())]
    return [
        Spec(name, _label(column, each), _target(name), {**parameters, **each}, chosen_as=column)
        for each in combinations
    ]


def _shown(parameters: Mapping[str, Any], several: bool) -> dict[str, Any]:
    """Returns the parameters that a column's name has: the layer, and all others only if a detector is asked for several times."""
    return {key: value for key, value in _single(parameters).items() if several or key == LAYER}


def _single(parameters: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in parameters.items() if not isinstance(value, list)}


def _entry(spec: str | Mapping[str, Any]) -> tuple[str, str | None, dict[str, Any]]:
    parameters = {"name": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    name, label = parameters.pop("name", None), parameters.pop("as", None)
    if not isinstance(name, str):
        raise UserError(f"detectors: {spec!r}: expected a name or a mapping with the key 'name'")
    if name in NAMED:
        if fixed := [key for key in NAMED[name] if key in parameters]:
            raise UserError(f"detectors: {name} sets {fixed[0]} itself: leave it out, or take {NAMED[name]['name']}")
        label, parameters = label or name, parameters | NAMED[name]
        name = parameters.pop("name")
    elif label is None:
        label = next((known for known, about in NAMED.items() if about == {"name": name, **parameters}), None)
    if label is not None and (not isinstance(label, str) or fault(label) or "/" in label):
        why = f"; it {fault(label)}" if isinstance(label, str) and fault(label) else ""
        raise UserError(f"detectors: {name}: 'as' is {label!r}, expected the name of a column, without slashes{why}")
    return name, label, parameters


def _label(name: str, parameters: Mapping[str, Any]) -> str:
    values = [key if value is True else f"{key}{value}" for key, value in parameters.items()]
    return "_".join([name.rpartition(".")[2], *values])


def _target(name: str) -> str:
    if name in DETECTORS:
        return DETECTORS[name]
    module, _, cls = name.rpartition(".")
    if module and cls.isidentifier():
        return f"{module}:{cls}"
    if name in STREAM_METHODS:
        raise UserError(
            f"detectors: {name} learns from the images that it scores, so that its scores do not compare with those of detectors: name it "
            "under evaluation.stream (docs/stream.md), or judge new images with detect.py --adapt"
        )
    nearest = get_close_matches(name, [*DETECTORS, *NAMED], n=3) or list(DETECTORS)
    raise UserError(
        f"detectors: unknown name {name!r}; nearest: {', '.join(nearest)}, or a class path pkg.module.Class"
    )
