"""The names of test-time methods and how a config asks for them. No torch is imported, so that a typo is reported at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from clip_ood.detectors.names import DETECTORS, NAMED, STREAM_METHODS, Spec
from clip_ood.errors import UserError
from clip_ood.naming import fault, twins

KEY = "evaluation.stream.methods"


def read_methods(methods: Sequence[str | Mapping[str, Any]], key: str = KEY) -> list[Spec]:
    """Reads the requested test-time methods, each with a label of its own.

    An entry is a name ("adaneg") or a mapping {"name": "adaneg", "length": 20}, whose optional key "as" gives the label.
    Raises UserError for an unknown name (and names the nearest), a detector, an empty list, and two equal labels.
    """
    if not methods:
        raise UserError(f"{key}: the list is empty; name some of {', '.join(STREAM_METHODS)}")
    found = [_spec(method, key) for method in methods]
    for label, count in Counter(spec.label for spec in found).items():
        if count > 1:
            raise UserError(f"{key}: {label!r} is asked for {count} times; tell them apart with 'as: …'")
    if same := twins(dict.fromkeys(spec.label for spec in found)):
        raise UserError(
            f"{key}: {same[0]!r} and {same[1]!r} differ in case, blanks or Unicode's form alone; tell them apart with 'as: …'"
        )
    return found


def _spec(method: str | Mapping[str, Any], key: str) -> Spec:
    parameters = {"name": method} if isinstance(method, str) else dict(method) if isinstance(method, Mapping) else {}
    name = parameters.pop("name", None)
    label = parameters.pop("as", name)
    if not isinstance(name, str):
        raise UserError(f"{key}: {method!r}: expected a name or a mapping with the key 'name'")
    if name in DETECTORS or name in NAMED:
        raise UserError(
            f"{key}: {name} does not learn from the images that it scores: name it under detectors. Test-time methods are "
            f"{', '.join(STREAM_METHODS)}"
        )
    if name not in STREAM_METHODS:
        nearest = get_close_matches(name, STREAM_METHODS, n=1) or list(STREAM_METHODS)
        raise UserError(f"{key}: unknown name {name!r}; nearest: {', '.join(nearest)}")
    if not isinstance(label, str) or fault(label) or "/" in label:
        raise UserError(f"{key}: {name}: 'as' is {label!r}, expected a name without slashes")
    return Spec(name, label, STREAM_METHODS[name], parameters)
