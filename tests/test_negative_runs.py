"""Whole runs with negative words on a tiny random CLIP: scores from open_clip alone, the store, two processes, errors."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

import forked
import numpy as np
import open_clip
import pyarrow.parquet as pq
import pytest
import tiny_clip
import torch
from PIL import Image
from test_negative_words import naive_choice, naive_eoe, naive_score

import eval as evaluation
from clip_ood import load
from clip_ood.backbones.open_clip_backbone import OpenClipBackbone
from clip_ood.errors import ConfigError
from clip_ood.features import store
from clip_ood.texts.negative_words import are_classes, csp_pool, eoe_pool, neglabel_pool, select
from clip_ood.texts.wordnet import Words, read_words

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]
NOUNS = [
    f"{first} {second}" for first in ("sea", "iron", "paper") for second in ("star", "gate", "boat", "nail", "ring")
]
ADJECTIVES = ["blue", "wet", "fast", "round", "old", "sour", "thin", "loud"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tiny_clip.make(tmp_path_factory.mktemp("negative"))
    (root / "wordnet").mkdir()
    for file, words in (("index.noun", [*NOUNS, "fox"]), ("index.adj", ADJECTIVES)):
        (root / "wordnet" / file).write_text("".join(f"{word.replace(' ', '_')} x 1\n" for word in words))
    return root


def run(root, name, *options):
    evaluation.main(["--config", tiny_clip.config(root, name, {"zero_shot": {}}), *with_words(root), *options])
    return root / "runs" / name


def with_words(root):
    return [f"--data.negative_words={root}/wordnet", "--detectors=[mcm, neglabel, csp]"]


def embed(model, tokenize, phrases, raw=False):
    """Unit means over prompts of unit embeddings, or of raw ones, a word at a time."""
    rows = []
    for word in phrases.words:
        tokens = tokenize([prompt.replace("{}", word) for prompt in phrases.prompts])
        rows.append(model.encode_text(tokens, normalize=not raw).double().mean(dim=0).numpy())
    return np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.no_grad()
def test_scores_of_a_run_are_those_of_open_clip_and_the_formula(root):
    table = pq.read_table(run(root, "scores") / "scores.parquet").to_pylist()
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip")
    tokenize = open_clip.get_tokenizer(f"local-dir:{root}/clip")
    words = read_words(root / "wordnet")
    assert "fox" in words.nouns and "fox" in tiny_clip.CLASSES
    for name, pool, same in (("neglabel", neglabel_pool, None), ("csp", csp_pool, 0.95)):
        pool = pool(words, tiny_clip.CLASSES)
        classes, nouns, adjectives = (
            embed(model, tokenize, part) for part in (pool.classes, pool.nouns, pool.adjectives)
        )
        assert (len(nouns), len(adjectives)) == (len(NOUNS) + 1, len(ADJECTIVES))
        chosen = naive_choice(nouns, classes, same, dropped=[len(NOUNS)]), naive_choice(adjectives, classes, same)
        negatives = [part[i] for part, places in zip((nouns, adjectives), chosen, strict=True) for i in places]
        check_scores(root, table, name, model, transform, classes, negatives)


def check_scores(root, table, name, model, transform, classes, negatives):
    for row in table:
        folder = root / "data" / ("id" if row["role"] == "id" else row["set"])
        image = transform(Image.open(folder / row["path"]).convert("RGB"))[None]
        h = model.encode_image(image, normalize=True)[0].double().numpy()
        expected = naive_score(h, classes, negatives, model.logit_scale.exp().item(), groups=100)
        assert row[name] == pytest.approx(expected, abs=1e-4)
    assert np.std([row[name] for row in table]) > 1e-2


@torch.no_grad()
def test_the_authors_choice_is_one_of_options(root):
    folder = root / "txtfiles"
    folder.mkdir()
    people = ["goat herder", "songwriter", "poet", "fox"]  # 20 nouns: 3 are chosen, and 2 of 18 without cat and fox
    for file, words in (("noun.artifact", [*NOUNS, "cat"]), ("noun.person", people), ("adj.all", ADJECTIVES)):
        (folder / f"{file}.txt").write_text("".join(f"{word}\n" for word in words))
    options = ["--data.negative_classes=kept", "--data.negative_averages=raw", "--data.csp_without=[noun.person]"]
    made = run(root, "authors", f"--data.negative_words={folder}", *options)
    table = pq.read_table(made / "scores.parquet").to_pylist()
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip")
    tokenize = open_clip.get_tokenizer(f"local-dir:{root}/clip")
    written = [line.split(",") for line in (made / "negative_words.csv").read_text().splitlines()[1:]]
    for name, nouns, pool, same in (
        ("neglabel", [*NOUNS, "cat", *people], neglabel_pool, None),
        ("csp", [*NOUNS, "cat"], csp_pool, 0.95),
    ):
        pool = pool(Words(tuple(nouns), tuple(ADJECTIVES)), tiny_clip.CLASSES)
        parts = pool.nouns, pool.adjectives
        classes, *candidates = (embed(model, tokenize, part, raw=True) for part in (pool.classes, *parts))
        places = [naive_choice(rows, classes, same) for rows in candidates]
        words = [part.words[i] for part, chosen in zip(parts, places, strict=True) for i in chosen]
        assert [word for detector, word in written if detector == name] == words
        negatives = [rows[i] for rows, chosen in zip(candidates, places, strict=True) for i in chosen]
        check_scores(root, table, name, model, transform, classes, negatives)


@torch.no_grad()
def test_words_can_be_chosen_by_their_distance_from_training_images(root):
    made = run(root, "images", "--data.negative_choice=farthest_from_images", "--detectors=[neglabel]")
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip")
    tokenize = open_clip.get_tokenizer(f"local-dir:{root}/clip")
    scored = {row["path"] for row in pq.read_table(made / "scores.parquet").to_pylist() if row["role"] in ("id", "val")}
    means = []
    for name in tiny_clip.CLASSES:
        files = [file for file in (root / "data/id" / name).iterdir() if f"{name}/{file.name}" not in scored]
        rows = [
            model.encode_image(transform(Image.open(file).convert("RGB"))[None], normalize=True)[0] for file in files
        ]
        means.append(torch.stack(rows).double().mean(dim=0))
    pool = neglabel_pool(read_words(root / "wordnet"), tiny_clip.CLASSES)
    parts = pool.nouns, pool.adjectives
    classes, *candidates = (torch.tensor(embed(model, tokenize, part)) for part in (pool.classes, *parts))
    expected = []
    for part, rows in zip(parts, candidates, strict=True):
        dropped = are_classes(part.words, tiny_clip.CLASSES)
        chosen = select([rows], classes, dropped, None, "farthest_from_images", torch.stack(means))
        expected += [f"neglabel,{part.words[i]}" for i in chosen]
    assert (made / "negative_words.csv").read_text().splitlines()[1:] == expected and expected
    with pytest.raises(ConfigError, match="farthest_from_images needs class labels of ID training images"):
        flat = "--data.id={images: near, class_names: [cat, dog]}"
        run(root, "images flat", "--data.negative_choice=farthest_from_images", flat, "--data.ood={far: far}")


@torch.no_grad()
def test_a_list_of_ones_own_is_used_as_it_is_without_class_names(root, capsys):
    words = ["sea star", "Fox", "iron_gate", "paper ring", "sour milk"]
    (root / "own.txt").write_text("\n".join(words))
    options = [f"--data.negative_words={root}/own.txt", "--data.negative_choice=given"]
    made = run(root, "own", *options)
    told = " ".join(capsys.readouterr().out.split())
    assert "neglabel: 1 of data.negative_words name ID classes and are left out: Fox." in told
    expected = ["sea star", "iron gate", "paper ring", "sour milk"]
    written = [line.split(",") for line in (made / "negative_words.csv").read_text().splitlines()[1:]]
    assert {name: [word for other, word in written if other == name] for name in ("neglabel", "csp")} == {
        "neglabel": expected,
        "csp": expected,
    }
    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{root}/clip")
    tokenize = open_clip.get_tokenizer(f"local-dir:{root}/clip")
    table = pq.read_table(made / "scores.parquet").to_pylist()
    for name, pool in (("neglabel", neglabel_pool), ("csp", csp_pool)):
        pool = pool(Words(tuple(expected)), tiny_clip.CLASSES)
        classes, negatives = (embed(model, tokenize, part) for part in (pool.classes, pool.nouns))
        check_scores(root, table, name, model, transform, classes, list(negatives))
    made = run(root, "own eoe", *options, "--detectors=[eoe]")
    assert tiny_clip.results(made)["negative_words"]["words"] == {"eoe": 4}
    pool = eoe_pool(Words(tuple(expected)), tiny_clip.CLASSES)
    classes, outliers = (embed(model, tokenize, part) for part in (pool.classes, pool.nouns))
    for row in pq.read_table(made / "scores.parquet").to_pylist():
        folder = root / "data" / ("id" if row["role"] == "id" else row["set"])
        h = model.encode_image(transform(Image.open(folder / row["path"]).convert("RGB"))[None], normalize=True)[0]
        assert row["eoe"] == pytest.approx(naive_eoe(h.double().numpy(), classes, outliers, 0.25, 1.0), abs=1e-5)
    kept = run(root, "own kept", *options, "--data.negative_classes=kept")
    assert (kept / "negative_words.csv").read_text().count("Fox") == 2
    (root / "classes.txt").write_text("fox\nCAT\n")
    with pytest.raises(ValueError, match=r"all words of .*classes\.txt name ID classes.*data\.negative_classes=kept"):
        run(root, "own classes", f"--data.negative_words={root}/classes.txt", "--data.negative_choice=given")


def test_a_saved_detector_holds_its_outlier_classes(root):
    (root / "saved.txt").write_text("sea star\niron gate\n")
    words = [f"--data.negative_words={root}/saved.txt", "--data.negative_choice=given", "--detectors=[eoe, neglabel]"]
    made = run(root, "saved", *words, "--data.splits.val=0.4", "--evaluation.accept=0.8")
    rows = [row for row in pq.read_table(made / "scores.parquet").to_pylist() if row["set"] == "near"]
    files = [root / "data/near" / row["path"] for row in rows]
    for column in ("eoe", "neglabel"):
        judged = [prediction.score for prediction in load(made, column)(files)]
        assert judged == pytest.approx([row[column] for row in rows], rel=1e-6) and len(judged) == len(rows) > 5


def test_the_words_that_were_chosen_lie_beside_the_scores_with_their_checksum(root):
    made = run(root, "words")
    told = tiny_clip.results(made)["negative_words"]
    content = (made / "negative_words.csv").read_bytes()
    assert told["sha256"] == hashlib.sha256(content).hexdigest() and told["file"] == "negative_words.csv"
    lines = content.decode().split()
    assert {name: sum(line.startswith(name) for line in lines) for name in ("neglabel", "csp")} == told["words"]
    assert told["words"] == {"neglabel": 3, "csp": 3}  # 15 % of 15 nouns and of 8 adjectives
    run(root, "words", "--detectors=[mcm]", "--overwrite")
    assert tiny_clip.results(made)["negative_words"] is None and not (made / "negative_words.csv").exists()


def test_a_second_run_encodes_nothing_and_one_without_the_detectors_no_word(root, monkeypatch):
    asked = []
    original = OpenClipBackbone.encode_text

    def encode(backbone, texts):
        asked.extend(texts)
        return original(backbone, texts)

    monkeypatch.setattr(OpenClipBackbone, "encode_text", encode)
    store = f"--features_root={root}/again"
    run(root, "none", store, "--detectors=[knn, mcm]")
    assert asked and not any("nail" in text for text in asked)
    asked.clear()
    run(root, "some", store, "--detectors=[neglabel]")
    classes, nouns = ([f"the nice {word}" for word in words] for words in (tiny_clip.CLASSES, [*NOUNS, "fox"]))
    once = {*classes, *nouns}  # a class that is a noun as well is encoded once
    assert sorted(asked) == sorted([*once, *(f"This is a {word} photo" for word in ADJECTIVES)])
    asked.clear()
    run(root, "same", store, "--detectors=[{name: neglabel, groups: 2}]")
    assert asked == []
    run(root, "other classes", store, "--detectors=[neglabel]", "--data.id.class_names=[wolf, pig, hen]")
    assert [text for text in asked if text.startswith("the nice")] == ["the nice wolf", "the nice pig", "the nice hen"]


def test_two_processes_score_as_one(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "PART", 16)
        run(root, "one", f"--features_root={root}/one")
    config = tiny_clip.config(root, "two", {"zero_shot": {}}, features_root=f"{root}/two")
    options = [*with_words(root), "--trainer.devices=2", "--trainer.strategy=ddp"]
    command = [sys.executable, "tests/small_parts.py", "eval", "--config", config, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = forked.run(command, cwd=PROJECT, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    found = [pq.read_table(root / "runs" / name / "scores.parquet") for name in ("one", "two")]
    assert found[0]["path"] == found[1]["path"]
    for detector in ("neglabel", "csp"):
        np.testing.assert_allclose(found[1][detector], found[0][detector], rtol=1e-6)


def test_a_missing_wordnet_stops_the_run_before_its_folder_is_made(root):
    with pytest.raises(ConfigError, match=r"data\.negative_words: There is no WordNet .* clip-ood demo wordnet"):
        run(root, "missing", f"--data.negative_words={root}/nowhere")
    assert not (root / "runs" / "missing").exists()
