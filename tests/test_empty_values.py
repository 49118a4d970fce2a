"""Nothing after a key: of a section it is {}, of a truth value that is false by default it is false; else it is named."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from studies import load_study

from clip_ood.config.explaining import explain, in_words
from clip_ood.config.loading import dump, load_config, override, validate
from clip_ood.config.schema import Config, Method
from clip_ood.config.section import Place, Section
from clip_ood.errors import ConfigError

BASE = {
    "name": "x",
    "data": {"id": "photos"},
    "backbone": {"library": "timm", "model": "test_vit"},
    "method": {"linear_probe": {}},
}
NOTHING = ["", " null", " ~", " Null"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("clip_ood.experiments.study.here.check_folders", lambda config: None)


def written(text):
    kept = {key: value for key, value in BASE.items() if not re.search(f"^{key}:", text, re.MULTILINE)}
    Path("run.yaml").write_text(yaml.safe_dump(kept) + text, encoding="utf-8")
    return load_config("run.yaml")


# Sections and mappings


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("key", ["evaluation", "trainer", "data.ood", "data.csid", "data.splits"])
def test_an_empty_section_takes_its_defaults(key, nothing):
    config = written(f"{key}:{nothing}\n")
    assert config == validate(BASE)
    assert validate(yaml.safe_load(dump(config))) == config


@pytest.mark.parametrize("key", ["evaluation", "trainer", "data.ood", "data.splits"])
def test_null_empties_a_section_on_the_command_line(key):
    steps = key.split(".")
    filled = override(BASE, ["--data.ood={a: x}", "--trainer.devices=2", "--evaluation.accept=0.9"])
    config = validate(override(filled, [f"--{key}=null"]))
    default = validate(BASE)
    for step in steps:
        config, default = getattr(config, step), getattr(default, step)
    assert config == default


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize(
    "key, message",
    [
        ("method", f"^method: needs exactly one of {', '.join(Method.model_fields)}; got none$"),
        ("backbone", "^The config key backbone.model is missing.$"),
        ("data", "^The config key data.id is missing.$"),
    ],
)
def test_an_empty_section_lacks_what_it_needs(key, message, nothing):
    with pytest.raises(ConfigError, match=message):
        written(f"{key}:{nothing}\n")


STUDY = """
config: base.yaml
shows: table
changes:{nothing}
axes:
  seed:
    given:{nothing}
    other: {{seed: 7}}
lines:
  msp: {{detector: msp, changes:{nothing}, only:{nothing}}}
"""


@pytest.mark.parametrize("nothing", NOTHING)
def test_empty_changes_of_a_study_change_nothing(nothing):
    Path("base.yaml").write_text(yaml.safe_dump(BASE))
    Path("study.yaml").write_text(STUDY.format(nothing=nothing))
    runs = load_study("study.yaml").runs
    assert {name: config.seed for name, config in runs.items()} == {"given--msp": 42, "other--msp": 7}


# Values


@pytest.mark.parametrize("nothing", NOTHING)
def test_nothing_is_false_where_false_is_the_default(nothing):
    config = written(f"data: {{id: {{images: {{folder: x, numbered:{nothing}}}}}, allow_partial:{nothing}}}\n")
    assert config.data.id.images.numbered is False and config.data.allow_partial is False


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize(
    "key, message",
    [
        ("seed", "seed has no value. Leave the key out for its default, 42."),
        ("evaluation.report", "evaluation.report has no value. Leave the key out for its default, true."),
        ("data.splits.val", "data.splits.val has no value. Leave the key out for its default, 0.2."),
        (
            "method.linear_probe.epochs",
            "method.linear_probe.epochs has no value. Leave the key out for its default, 100.",
        ),
        ("seeds", "seeds has no value. Leave the key out for its default, []."),
        ("data.prompts", "data.prompts has no value. Leave the key out for its default."),
    ],
)
def test_nothing_is_named_where_it_could_mean_anything(key, message, nothing):
    with pytest.raises(ConfigError) as error:
        written(f"{key}:{nothing}\n")
    assert str(error.value) == message


# Unions, in words


class Either(Section):
    """Keys that take more than one kind."""

    which: list[int] | Place | Literal["all"] | None = None
    how_many: Annotated[int | Literal["auto"], None] = 1
    nested: dict[str, int | bool | dict[str, float]] | None = None


@pytest.mark.parametrize(
    "given, message",
    [
        ({"which": 3}, "which: takes a list, a path, 'all' or null (got 3)"),
        ({"which": [1, [2]]}, "which: takes a list, a path, 'all' or null (got [1, [2]])"),
        ({"which": {"a": 1}}, "which: takes a list, a path, 'all' or null"),
        ({"which": ""}, "which: is empty; the folder itself is . (got '')"),
        ({"how_many": "some"}, "how_many: takes a whole number or 'auto' (got 'some')"),
        ({"nested": {"a": [1]}}, "nested.a: takes a whole number, true or false or keys, as {KEY: VALUE} (got [1])"),
    ],
)
def test_a_union_says_what_it_takes_in_one_line(given, message):
    with pytest.raises(ValidationError) as error:
        Either.model_validate(given)
    assert explain(error.value, Either) == message


def test_the_words_of_a_type():
    assert in_words(bool | None) == "true or false or null" and in_words(Literal["a", "b", "c"]) == "'a', 'b' or 'c'"


WRONG = [[["x"]], {"KEY": ["x"]}, "", " ", [], "\x00", 1.5, True, -1, {"KEY": {"KEY": "x"}}]


def _keys(section: type[BaseModel], prefix: str = ""):
    from clip_ood.config.help import section_of

    for name, field in section.model_fields.items():
        yield prefix + name
        if inner := section_of(field.annotation):
            between = ".any" if str(field.annotation).startswith("dict") else ""
            yield from _keys(inner, f"{prefix}{name}{between}.")


@pytest.mark.parametrize("key", sorted(_keys(Config)))
def test_no_wrong_value_of_any_key_is_answered_in_a_librarys_internals(key):
    for wrong in WRONG:
        content: dict = {}
        place = content
        *steps, last = key.split(".")
        for step in steps:
            place = place.setdefault(step, {})
        place[last] = wrong
        with pytest.raises(ValidationError) as error:
            Config.model_validate(
                {key: value for key, value in BASE.items() if key not in content} | content | {"more": 1}
            )
        told = explain(error.value, Config)
        internals = (
            "function-",
            "json-or-python",
            "literal[",
            "lax-or",
            "is-instance",
            "pathlib",
            "Input ",
            "pydantic",
            "list[",
        )
        assert not any(each in told for each in internals), told


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("--data.id.shards=a.tar", "data.id.images.shards"),
        ("--data.id.numbered=true", "data.id.images.numbered"),
        ("--batch_size=3", "data.batch_size"),
    ],
)
def test_a_key_of_a_section_below_is_named_with_it(given, meant):
    with pytest.raises(ConfigError, match=rf"Did you mean {re.escape(meant)}\?"):
        load_config("demo.yaml", [given])
