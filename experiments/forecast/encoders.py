"""Tells what would be downloaded of some runs' encoders, and of which images their features are not stored yet."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from clip_ood.backbones.downloads import parameters_of, would_download
from clip_ood.backbones.fingerprint import fingerprint
from clip_ood.backbones.remote import Remote
from clip_ood.backbones.shape import Shape, Unknown, shape_of, shapes_inside
from clip_ood.backbones.weights import remote_config, remote_weights
from clip_ood.config.schema import BackboneConfig, Config
from clip_ood.data.benchmark import Benchmark
from clip_ood.data.image_list import ImageList
from clip_ood.errors import UserError
from clip_ood.experiments.extraction import arrays_of, starting_images, stored_sets, texts_of, words_of
from clip_ood.experiments.patches import patched_images, token_arrays, training_rows
from clip_ood.features.identity import firsts
from clip_ood.features.store import FeatureStore
from clip_ood.outputs import Inside

ENTRY = 25  # bytes of a stored image beside its features: its identity, its place, whether it could be read
FILE = 40  # bytes for what a file was found to hold
HALF = 2  # bytes of a stored feature, but for encoders of full precision


@dataclass
class Encoder:
    """An encoder as the runs of one plan use it.

    `to_read` is how many images have never been read, of which some are to be encoded; `size` is the bytes that they and the
    prompts will take (None: their widths are not known).
    """

    config: Config
    spec: BackboneConfig = field(init=False)
    _encoded: dict[ImageList, np.ndarray] = field(default_factory=dict)  # identities of the missing images
    _only_read: dict[ImageList, np.ndarray] = field(default_factory=dict)
    _strings: dict[str, None] = field(default_factory=dict)
    _words: dict[str, int] = field(default_factory=dict)
    _unlisted: dict[str, int] = field(default_factory=dict)  # to be encoded
    _patches: dict[tuple[ImageList, str], int] = field(default_factory=dict)  # numbers that tokens take
    _shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of layers and tokens, by their names
    _unread: dict[str, int] = field(default_factory=dict)  # only to be read
    _layers: set[str] = field(default_factory=set)  # those that any run wants

    def __post_init__(self) -> None:
        self.spec = self.config.backbone

    @property
    def downloads(self) -> list[str]:
        """Returns what would be downloaded of it."""
        return [f"{what} of {spec.model} {would_download(spec, remote)}" for what, spec, remote in self._absent]

    @property
    def incoming(self) -> dict[Path, int]:
        """Returns the bytes that come into folders with its weights, as far as they are known."""
        sizes: dict[Path, int] = {}
        for what, spec, remote in self._absent:
            if what == "The weights" and (parameters := parameters_of(spec)):
                sizes[remote.cache] = sizes.get(remote.cache, 0) + 4 * parameters
        return sizes

    @cached_property
    def _absent(self) -> list[tuple[str, BackboneConfig, Remote]]:
        specs = [each for each in (self.spec, self.spec.text_spec) if each is not None]
        remotes = [
            (what, spec, remote)
            for spec in specs
            for what, remote in (("The configuration", remote_config(spec)), ("The weights", remote_weights(spec)))
        ]
        return [each for each in remotes if each[2] is not None and not each[2].cached()]

    @cached_property
    def shape(self) -> Shape | None:
        """Its widths; None if they are known only once it is loaded."""
        try:
            return shape_of(self.spec)
        except Unknown:
            return None

    @cached_property
    def _stores(self) -> tuple[FeatureStore, FeatureStore] | None:
        """The stores of images and of texts; None if the weights are not here, because then nothing is stored of them."""
        return None if self._absent else (self._store(self.spec), self._store(self.spec.text_spec or self.spec))

    def _store(self, spec: BackboneConfig) -> FeatureStore:
        """Returns the store of an encoder; a file's hash that is not known yet is not remembered."""
        root = self.config.features_root
        with TemporaryDirectory() as place:
            hashes = Path(place, "hashes.json")
            if (root / hashes.name).is_file():
                shutil.copy(root / hashes.name, hashes)
            return FeatureStore(root, fingerprint(spec, hashes))

    @property
    def item(self) -> int:
        """The bytes of a stored number."""
        return 4 if self.spec.precision == "fp32" else HALF

    def add_images(self, config: Config, images: dict[str, ImageList]) -> None:
        """Counts the images of some sets that the store lacks, each once."""
        seen = self._only_read if config.method.settings.tunes_encoder else self._encoded
        new = {key: each for key, each in images.items() if each not in seen}
        if self._stores is None:
            for each in new.values():
                self.add_count(config, f"{each.name} {each.root} {len(each)}", len(each))
            return
        for key, stored in stored_sets(config, self._stores[0], new).items():
            seen[new[key]] = stored.identities_of(stored.missing())

    def add_patches(self, config: Config, benchmark: Benchmark, trains: bool) -> None:
        """Counts the patch tokens that the store lacks, of the images that are scored and, if it `trains`, of those of the method's draw, and
        notes which layers are wanted."""
        self._layers.update(Inside.of(arrays_of(config)).layers)
        wanted = [(each, token_arrays(config, benchmark)) for each in patched_images(config, benchmark)[0].values()]
        if trains and (kind := config.method.settings.patches) is not None:
            train = benchmark.images[benchmark.parts["train"].images]
            wanted.append((train.subset(training_rows(config, benchmark).tolist()), Inside(tokens=(kind,)).arrays))
        for images, arrays in wanted:
            for name in arrays:
                stored = None if self._stores is None else self._stores[0].image_set("", images, (name,))
                missing = len(images if stored is None else stored.missing())
                self._patches[images, name] = missing * prod(self._shape_inside(name))

    def _shape_inside(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a layer or of patch tokens, (0,) if it is known only once the encoder is loaded."""
        if name not in self._shapes:
            try:
                self._shapes[name] = shapes_inside(self.spec, Inside.of([name]))[name]
            except UserError:
                self._shapes[name] = (0,)
        return self._shapes[name]

    def add_start(self, config: Config, benchmark: Benchmark) -> None:
        """Counts the images that are encoded for the start of a head that is tuned with its encoder."""
        for key, images in starting_images(config, benchmark).items():
            if self._stores is None:
                self._unlisted[key] = len(images)
                continue
            stored = self._stores[0].image_set(images.name, images, arrays_of(config))
            self._encoded[images] = stored.identities_of(stored.missing())

    def add_count(self, config: Config, name: str, count: int) -> None:
        """Counts the images of a set that cannot be looked up yet."""
        (self._unread if config.method.settings.tunes_encoder else self._unlisted)[name] = count

    def add_texts(self, config: Config, benchmark: Benchmark) -> None:
        """Counts the prompts and words that are not stored."""
        strings, chosen_from = texts_of(config, benchmark)
        self._strings |= dict.fromkeys(self._stores[1].missing_texts(strings) if self._stores else strings)
        for name, phrases in words_of(config, chosen_from).items():
            words = len(self._stores[1].word_set(name, phrases).missing()) if self._stores else len(phrases.words)
            self._words[name] = max(words, self._words.get(name, 0))

    @property
    def to_encode(self) -> int:
        return sum(self._unlisted.values()) + _distinct(self._encoded.values())

    @property
    def to_read(self) -> int:
        unlisted = sum((self._unread | self._unlisted).values())
        return unlisted + _distinct([*self._encoded.values(), *self._only_read.values()])

    @property
    def size(self) -> int | None:
        if self.shape is None:
            return None
        joint = self.shape.embeddings or 0
        layers = sum(self._shape_inside(f"layers.{each}")[0] for each in self._layers)
        values = self.to_encode * (self.shape.width + layers) + sum(self._patches.values())
        images = values * self.item + self.to_read * (ENTRY + FILE)
        return (
            images + len(self._strings) * (4 * joint + ENTRY) + sum(self._words.values()) * (self.item * joint + ENTRY)
        )


def _distinct(identities: Iterable[np.ndarray]) -> int:
    there = [each for each in identities if len(each)]
    return len(firsts(np.concatenate(there))) if there else 0
