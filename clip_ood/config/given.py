"""Checks a run on features that are given: no encoder makes others of its images, since it has none."""

from __future__ import annotations

from collections.abc import Mapping

from clip_ood.config.data_schema import ImageSet
from clip_ood.config.schema import Config
from clip_ood.config.set_keys import option_of
from clip_ood.errors import ConfigError

GIVEN = "given"  # the library of a backbone that is not loaded


def check_given(config: Config, sets: Mapping[str, ImageSet]) -> None:
    """Raises ConfigError if some sets are given as features and others are not, and for what takes the images or their encoder."""
    given = [key for key, spec in sets.items() if spec.features is not None]
    if config.backbone.library != GIVEN:
        if given:
            raise ConfigError(
                f"{option_of(given[0])} is given as features, and the encoder {config.backbone.model} would make others of images: say "
                "what they are features of, as --backbone='{library: given, model: NAME}'"
            )
        return
    if others := [key for key in sets if key not in given]:
        raise ConfigError(
            f"backbone.library is given, so that nothing makes features of the images of {option_of(others[0])}: give them, as "
            "{features: FILE.npz}, or name the encoder"
        )
    takes = {
        f"method.{config.method.name} tunes the encoder": config.method.settings.tunes_encoder,
        f"method.{config.method.name} looks at patches": config.method.settings.patches is not None,
        "evaluation.leaks: near decodes images": config.evaluation.leaks == "near",
        "evaluation.with_encoder saves the encoder": config.evaluation.with_encoder,
    }
    if wrong := next((what for what, is_so in takes.items() if is_so), None):
        raise ConfigError(f"{wrong}, and with backbone.library: given there is none: leave it out, or name the encoder")
