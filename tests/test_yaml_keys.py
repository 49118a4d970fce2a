"""Keys of YAML files: one that stands twice or is no text is named, and an anchor may serve many mappings."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_values import given, written
from studies import load_study

from clip_ood.config.yaml_text import parse
from clip_ood.errors import ConfigError

pytestmark = pytest.mark.usefixtures("demo_encoders")


@pytest.mark.parametrize(
    "text, message",
    [
        ("seed: 1\ndata.ood: {}\nseed: 2", "the key 'seed' stands twice, in lines 4 and 6"),
        ("method:\n  plp:\n    lr: 1\n    epochs: 2\n    lr: 1", "the key 'lr' stands twice, in lines 5 and 7"),
        ("data.ood: {a: x, b: y, a: z}", "the key 'a' stands twice, in line 4, columns 12 and 24"),
        ("data.ood: {1: x, '1': y}", "the key '1' stands twice"),
        ("data.splits: {val: 0.1}\ndata: {id: photos}", "data would replace data.splits, which stands before it"),
    ],
)
def test_a_key_that_stands_twice_is_named_with_both_lines(text, message):
    with pytest.raises(ConfigError, match=rf"^run\.yaml: {message}"):
        written(text)


def test_a_key_that_stands_twice_in_braces_or_is_replaced_is_named():
    with pytest.raises(ConfigError, match=r"--data.ood: the key 'a' stands twice, in line 1, columns 2 and 8"):
        given("--data.ood={a: x, a: y}")
    with pytest.raises(
        ConfigError, match=r"--data would replace --data.root, which stands before it; put --data first"
    ):
        given("--data.root=here", "--data={id: photos}")
    Path("study.yaml").write_text("config: demo.yaml\nshows: table\nlines: {a: {detector: knn}}\nshows: curve\n")
    with pytest.raises(ConfigError, match=r"^study\.yaml: the key 'shows' stands twice, in lines 2 and 4"):
        load_study("study.yaml")


def test_one_anchor_may_serve_many_mappings_and_each_may_differ():
    found = parse("a: &a {x: 1, y: 2}\nb: {c: &c {<<: *a, x: 3}}\nd: {<<: *c, y: 4}\n")
    assert found == {"a": {"x": "1", "y": "2"}, "b": {"c": {"x": "3", "y": "2"}}, "d": {"x": "3", "y": "4"}}


@pytest.mark.parametrize("text", ["? [a]\n: b", "seeds: {[a]: b}", "? {a: b}\n: c"])
def test_a_key_that_is_no_text_is_named(text):
    with pytest.raises(ConfigError, match=r"^run\.yaml is no valid YAML: a key must be text, line 4"):
        written(text)
