"""From an attack's file to the experiments that it needs; nothing heavy is imported."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from clip_ood.config.attack_schema import AttackConfig
from clip_ood.config.checks import check_folders
from clip_ood.config.data_schema import ImageSet
from clip_ood.config.loading import (
    CONFIGS,
    change,
    contents,
    divide,
    explain,
    find_config,
    in_yaml,
    override,
    plain,
    read,
    validate,
)
from clip_ood.config.resuming import differences, settled
from clip_ood.config.schema import Config
from clip_ood.detectors.names import read_specs
from clip_ood.errors import ConfigError, UserError, nearest
from clip_ood.experiments.kept_decisions import as_kept, kept_by
from clip_ood.experiments.resume import check_heads, check_same, unreadable
from clip_ood.naming import twins
from clip_ood.runs.run_folder import CONFIG, check_name

CLEAN, SCORED, APART = "clean", "scored", "out_of_gallery"  # the runs of an attack, below its folder
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True)
class Plan:
    """An attack, its experiment, and the run that a trained head is taken from (None: the attack trains one)."""

    attack: AttackConfig
    config: Config
    source: Path | None

    def dump(self) -> str:
        """The attack as YAML, with every key, and its experiment's under `changes`: it can be loaded again."""
        absent = None if self.attack.score is None else {"target"}
        content = self.attack.model_dump(mode="json", exclude=absent) | {"changes": contents(self.config)}
        return in_yaml(content)

    def settled(self) -> list[dict[str, Any]]:
        """What images and scores depend on: the attack and its experiment without what may change when it is resumed."""
        return [settled(self.attack.model_copy(update={"changes": {}})), settled(self.config)]


def load_attack(name: str, arguments: list[str] | None = None) -> Plan:
    """As `read_attack`. Raises: ConfigError also for images, and a head, that are not there."""
    plan = read_attack(name, arguments)
    check_source(plan)
    check_folders(as_kept(plan.config, kept_by(plan.source, plan.config)))
    return plan


def check_source(plan: Plan) -> None:
    """Raises ConfigError where the run that is attacked has no head of the same division of the images."""
    if plan.source is not None and plan.config.method.settings.trains:
        check_heads(plan.source, plan.config)


def read_attack(name: str, arguments: list[str] | None = None) -> Plan:
    """The attack `name` (a path, or looked up in configs/attacks/); arguments `--key=value` change its keys or else
    those of the experiment.

    Raises: ConfigError for wrong keys of either, and what cannot be attacked.
    """
    path = find_config(name, CONFIGS / "attacks")
    ours, theirs = divide(arguments or [], AttackConfig)
    keys = [*AttackConfig.model_fields, *Config.model_fields]
    for key in (each[2:].partition("=")[0] for each in theirs if each.startswith("--")):
        if key.partition(".")[0] not in keys:
            raise ConfigError(f"Neither an attack nor its experiment has a key {key}.{nearest(key, keys)}")
    try:
        attack = AttackConfig.model_validate(override({"name": path.stem} | plain(path, "ood"), ours, AttackConfig))
    except ValidationError as error:
        raise ConfigError(explain(error, AttackConfig)) from None
    run = Path(attack.config)
    of_run = (run / CONFIG).is_file()
    base = read(run / CONFIG if of_run else find_config(attack.config))
    config = validate(override(change({"name": attack.name} | base, attack.changes), theirs))
    plan = Plan(attack, config, run if of_run else None)
    _check(plan)
    return plan


def _check(plan: Plan) -> None:
    attack, config = plan.attack, plan.config
    if config.seeds:
        raise ConfigError(
            f"An attack is on one run, and {attack.config} has several seeds: set --seeds=[] and --seed=…"
        )
    if attack.ood not in config.data.ood:
        known = ", ".join(config.data.ood) or "none"
        raise ConfigError(
            f"ood: the experiment has no OOD set {attack.ood!r}.{nearest(attack.ood, config.data.ood)} Known: {known}"
        )
    if config.method.settings.tunes_encoder:
        raise ConfigError(
            f"An attack needs a frozen encoder: take a zero_shot, linear_probe or plp experiment, not {config.method.name}"
        )
    if attack.score is not None:
        score_of(plan)
    if attack.target == "text" and not config.backbone.reads_text:
        raise ConfigError(
            f"target: text needs a text encoder, and {config.backbone.library}'s models have none: take train or nearest"
        )
    if same := twins(attack.transfer):
        raise ConfigError(f"transfer: {same[0]!r} and {same[1]!r} are one name to some systems; call them otherwise")
    for name, block in attack.transfer.items():
        check_name(name, "transfer")
        transferred(plan, name, block)


def score_of(plan: Plan) -> dict[str, Any]:
    """The detector whose score is raised, as a config names it. Raises: ConfigError where the experiment has none so called."""
    specs = {spec.label: spec for spec in read_specs(plan.config.detectors)}
    if (label := plan.attack.score) not in specs:
        raise ConfigError(
            f"score: the experiment has no detector {label!r}.{nearest(label, specs)} It has {', '.join(specs)}"
        )
    spec = specs[label]
    return {"name": spec.name, "as": label, **spec.parameters}


def check_resumed(plan: Plan, folder: Path) -> None:
    """Raises: ConfigError where `folder` holds an unfinished attack of other settings."""
    if not (folder / CONFIG).is_file():
        return
    try:
        content = plain(folder / CONFIG, "ood")
        config = validate(content.pop("changes", {}))
        attack = AttackConfig.model_validate(content)
    except ValidationError as error:
        raise unreadable(folder, ConfigError(explain(error, AttackConfig))) from None
    except UserError as error:
        raise unreadable(folder, error) from None
    now = plan.attack.model_copy(update={"changes": {}})
    check_same(folder, differences(attack, now) + differences(config, plan.config))


def transferred(plan: Plan, name: str, block: str) -> Config:
    """The experiment on another encoder. Raises: ConfigError for an unknown one."""
    try:
        return validate(change(contents(plan.config), {"backbone": block}))
    except UserError as error:
        raise ConfigError(f"transfer.{name}: {error}") from None


def with_sets(config: Config, ood: dict[str, ImageSet]) -> Config:
    """The experiment with these OOD sets alone, scored and not drawn."""
    data = config.data.model_copy(update={"ood": ood, "csid": {}})
    only_scores = {"figures": False, "report": False, "save_detector": False, "every_n_epochs": 0}
    evaluation = config.evaluation.model_copy(update=only_scores)
    return config.model_copy(update={"data": data, "evaluation": evaluation})


def defended(attack: AttackConfig) -> dict[str, ImageSet]:
    """The ID test images through each defence, as OOD sets."""
    return {
        f"id_{corruption}": ImageSet(corruption=corruption, severity=severity, group="defence")
        for corruption, severity in attack.defences.items()
    }


def transfer_folder(folder: Path, name: str) -> Path:
    """Where the encoder that a config calls `name` scores the images of the attack in `folder`."""
    return folder / f"transfer_{name}"


def image_set(folder: Path) -> ImageSet:
    """A folder of saved images as an OOD set."""
    return ImageSet(folder=folder.resolve(), group="adversarial")
