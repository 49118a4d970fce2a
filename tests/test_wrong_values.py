"""Values that no key can have are answered in one line that names the key, whichever key it is."""

from __future__ import annotations

import json

import pytest
import tiny_clip
from detector_data import ALL, REFERENCE
from pydantic import BaseModel

import study
from clip_ood.config.explaining import explain
from clip_ood.config.loading import load_config
from clip_ood.config.section import Place, Section
from clip_ood.config.trainer_keys import check_trainer
from clip_ood.detectors.build import build_detectors
from clip_ood.errors import ConfigError


class Keys(Section):
    """Keys that nobody has seen before."""

    text: str = "a"
    may_be_empty: str = ""
    texts: list[str] = []  # noqa: RUF012
    place: Place | None = None
    sets: dict[str, str] = {}  # noqa: RUF012


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("text", "a\0b", "text: holds a NUL character"),
        ("text", "a\x1b[31mb", "text: holds a control character"),
        ("text", "a\udc80b", "text: holds bytes that are no UTF-8"),
        ("text", "", "text: is empty; leave the key out"),
        ("text", " ", "text: is empty"),
        ("texts", ["a", "a\0b"], "texts: holds a NUL character"),
        ("texts", [""], "texts: is empty"),
        ("may_be_empty", "\0", "may_be_empty: holds a NUL character"),
        ("place", "a\0b", "place: holds a NUL character"),
        ("sets", {"a\0b": "c"}, r"sets: the name 'a\x00b' holds a NUL character"),
        ("sets", {"a\udc80b": "c"}, r"sets: the name 'a\udc80b' holds bytes that are no UTF-8"),
    ],
)
def test_a_new_key_is_covered_by_being_declared(key, value, told):
    with pytest.raises(ValueError) as error:
        Keys.model_validate({key: value})
    assert told in explain(error.value, Keys)


@pytest.mark.parametrize("value", [{"may_be_empty": ""}, {"text": "two\nlines"}, {"place": "a\udc80b"}])
def test_what_a_key_can_have_is_taken(value):
    assert isinstance(Keys.model_validate(value), BaseModel)


@pytest.mark.parametrize(
    "argument", ["--seed=1e9", "--seed=" + "9" * 5000, "--evaluation.resamples=99999999999", "--backbone.label= "]
)
def test_wrong_values_of_a_config(argument):
    with pytest.raises(ConfigError, match=argument[2:].partition("=")[0]):
        load_config("zero_shot_demo.yaml", [argument])


@pytest.mark.parametrize("devices", [10**40, 5000, "5000", "9" * 5000, "0", [], [-1]])
def test_no_machine_has_so_many_devices(devices):
    with pytest.raises(ConfigError, match=r"trainer\.devices"):
        check_trainer({"accelerator": "cpu", "devices": devices})


@pytest.mark.parametrize("method", [[], {}, "", None, [[[]]], "plp"])
def test_a_study_whose_method_is_none(method, tmp_path):
    lines = {"one": {"detector": "knn", "changes": {"method": method}}}
    keys = {"config": tiny_clip.config(tmp_path, "base", {"zero_shot": {}}), "shows": "table", "lines": lines}
    (tmp_path / "study.yaml").write_text(json.dumps(keys | {"axes": {"shots": {"method.*.per_class": [1, 2]}}}))
    with pytest.raises(ConfigError, match="method"):
        study.main(["--config", str(tmp_path / "study.yaml")])


@pytest.mark.parametrize(
    "parameters",
    [
        {"name": "gen", "gamma": "a"},
        {"name": "gen", "gamma": float("inf")},
        {"name": "gen", "gamma": True},
        {"name": "gen", "gamma": 10**400},
        {"name": "knn", "kth": 3},
        {"name": "mahalanobis", "normalize": "no"},
        {"name": "nnguide", "seed": "a"},
        {"name": "neglabel", "seed": None},
        {"name": "energy", "temperature": [[1]]},
        {"name": "vim", "dim": {"a": 1}},
    ],
)
def test_a_detectors_parameter_is_of_the_type_that_it_declares(parameters):
    key = list(parameters)[1]
    with pytest.raises(ValueError, match=rf"{parameters['name']}: {key} = .*, expected (a|true)"):
        build_detectors([parameters], REFERENCE, ALL)
