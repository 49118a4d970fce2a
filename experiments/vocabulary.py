"""The vocabulary of an experiment, whose nearest words name its images."""

from __future__ import annotations

from clip_ood.config.schema import Config
from clip_ood.data.class_names import imagenet_names
from clip_ood.texts.prompts import Phrases
from clip_ood.texts.vocabulary import PROMPTS
from clip_ood.texts.wordnet import read_words

SET = "the vocabulary"  # as the feature store calls it


def vocabulary_words(config: Config) -> dict[str, Phrases]:
    """Returns the words that the text encoder must encode, by the name of their set; none without a vocabulary or a text encoder."""
    source = config.data.vocabulary
    if source is None or not config.backbone.reads_text:
        return {}
    words = imagenet_names() if source == "imagenet" else read_words(source).nouns
    return {SET: Phrases(tuple(words), PROMPTS)}
