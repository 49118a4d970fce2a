"""NegLabel and CSP against loops from their formulas; WordNet's files; the choice of negative labels."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_ood.config.checks import check_texts
from clip_ood.config.data_schema import Data
from clip_ood.detectors import build_detectors
from clip_ood.detectors.eoe import EOE
from clip_ood.detectors.negative_labels import CSP, NegLabel
from clip_ood.errors import ConfigError
from clip_ood.outputs import NegativeLabels, Outputs, Reference
from clip_ood.texts.negative_words import (
    BOTH_ENDS,
    FROM_IMAGES,
    GIVEN,
    SUPERCLASSES,
    are_classes,
    csp_pool,
    negative_labels,
    neglabel_pool,
    select,
)
from clip_ood.texts.prompts import fill
from clip_ood.texts.wordnet import PLACES, Words, read_words

NOUN_INDEX = """  1 This is the licence, its lines begin with spaces.
  2 The second line.
sea_urchin n 1 2 @ ~ 1 0 01793177
shovel n 4 3 @ ~ + 4 2 04208210 04208427 03463666 13774010
urchin n 2 2 @ ~ 2 0 10744164 01793177
"""
ADJECTIVE_INDEX = "  1 The licence.\nblue a 8 4 ! & + = 8 1 00370869\nurchin a 1 1 & 1 0 00000001\n"


def unit_rows(count, width, seed):
    rows = np.random.default_rng(seed).normal(size=(count, width))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def tensor(rows):
    return torch.tensor(rows, dtype=torch.float32)


def naive_score(h, classes, negatives, scale, groups, seed=0):
    """The mean over groups of the classes' share in the sum of e^{s cos}, an image and a group at a time."""
    groups = min(groups, len(negatives))
    size = len(negatives) // groups
    order = torch.randperm(groups * size, generator=torch.Generator().manual_seed(seed)).tolist()
    shares = []
    for group in range(groups):
        members = [negatives[i] for i in order[group * size : (group + 1) * size]]
        exponents = [scale * float(np.dot(h, t)) for t in [*classes, *members]]
        values = [math.exp(each - max(exponents)) for each in exponents]
        shares.append(math.fsum(values[: len(classes)]) / math.fsum(values))
    return math.fsum(shares) / groups


@pytest.mark.parametrize(
    ("classes", "negatives", "groups"),
    [(5, 30, 10), (5, 37, 10), (5, 7, 100), (1, 12, 4), (3, 1, 100), (40, 20, 1)],
    ids=["equal groups", "some left out", "fewer words than groups", "one class", "one word", "one group"],
)
@pytest.mark.parametrize("kind", [NegLabel, CSP])
@pytest.mark.parametrize("scale", [100.0, 3.0])
def test_scores_are_those_of_the_formula(kind, classes, negatives, groups, scale):
    images, ids, words = (unit_rows(n, 16, seed) for seed, n in enumerate((9, classes, negatives)))
    words[-1] = words[0]  # a word that stands there twice
    images[0], images[1] = ids[0], words[0]
    reference = Reference(logit_scale=scale, **{kind.name: NegativeLabels(tensor(ids), tensor(words))})
    detector = kind(reference, groups=groups)
    found = detector.score(Outputs(embeddings=tensor(images)))
    exact = [tensor(rows).double().numpy() for rows in (images, ids, words)]
    exact = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in exact]
    expected = [naive_score(h, *exact[1:], scale, groups) for h in exact[0]]
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-12)


def naive_eoe(h, classes, outliers, beta, tau):
    values = [math.exp(float(np.dot(h, t)) / tau) for t in [*classes, *outliers]]
    total = math.fsum(values)
    return max(values[: len(classes)]) / total - beta * max(values[len(classes) :]) / total


@pytest.mark.parametrize(("classes", "outliers"), [(5, 30), (1, 12), (3, 1)])
@pytest.mark.parametrize(("beta", "tau"), [(0.25, 1.0), (0, 0.01), (1, 0.1)])
def test_the_score_of_eoe_is_that_of_the_formula(classes, outliers, beta, tau):
    images, ids, words = (unit_rows(n, 16, seed) for seed, n in enumerate((9, classes, outliers)))
    words[-1] = words[0]  # a tie
    images[0], images[1] = ids[0], words[0]
    detector = EOE(Reference(eoe=NegativeLabels(tensor(ids), tensor(words))), beta=beta, tau=tau)
    found = detector.score(Outputs(embeddings=tensor(images)))
    exact = [tensor(rows).double().numpy() for rows in (images, ids, words)]
    exact = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in exact]
    np.testing.assert_allclose(found, [naive_eoe(h, *exact[1:], beta, tau) for h in exact[0]], rtol=1e-5, atol=1e-7)


def test_eoe_names_what_is_wrong():
    reference = Reference(eoe=NegativeLabels(torch.eye(3)[:1], torch.eye(3)[1:]))
    for options, message in (({"beta": -1}, "beta = -1, expected"), ({"tau": 0}, "tau = 0, expected")):
        with pytest.raises(ValueError, match=f"eoe: {message}"):
            EOE(reference, **options)
    assert EOE(reference, tau=1e-4).score(Outputs(embeddings=torch.eye(3))).tolist() == pytest.approx([1, -0.25, -0.25])
    _, (left_out,) = build_detectors(["eoe"], Reference(class_names=("cat",)), {"embeddings"})
    assert "data.negative_choice=given" in left_out.reason


def test_scores_do_not_depend_on_batches_or_on_how_many_cosines_are_worked_on_at_once(monkeypatch):
    labels = NegativeLabels(tensor(unit_rows(4, 16, 0)), tensor(unit_rows(50, 16, 1)))
    detector = NegLabel(Reference(logit_scale=100.0, neglabel=labels), groups=10)
    images = tensor(unit_rows(33, 16, 2))
    whole = detector.score(Outputs(embeddings=images))
    monkeypatch.setattr("clip_ood.detectors.negative_labels.CELLS", 1)
    single = torch.cat([detector.score(Outputs(embeddings=part)) for part in images.split(7)])
    torch.testing.assert_close(whole, single, rtol=1e-5, atol=0)


def test_a_huge_logit_scale_gives_no_nan():
    labels = NegativeLabels(torch.eye(4)[:1], torch.eye(4)[1:])
    detector = NegLabel(Reference(logit_scale=1e4, neglabel=labels))
    assert detector.score(Outputs(embeddings=torch.eye(4))).tolist() == pytest.approx(
        [1, 2 / 6, 2 / 6, 2 / 6], abs=0.01
    )


def test_without_words_both_are_left_out_with_the_way_out():
    reference = Reference(logit_scale=100.0, class_names=("cat",))
    detectors, omitted = build_detectors(["neglabel", "csp"], reference, {"embeddings", "logit_scale"})
    assert not detectors and all("set data.negative_words" in each.reason for each in omitted)
    assert [each.detector for each in omitted] == ["neglabel", "csp"]


@pytest.mark.parametrize("groups", [0, 2.5])
def test_impossible_groups_are_named(groups):
    labels = NegativeLabels(torch.eye(3)[:1], torch.eye(3)[1:])
    with pytest.raises(ValueError, match=rf"groups = {groups}"):
        NegLabel(Reference(logit_scale=1.0, neglabel=labels), groups=groups)


def naive_choice(candidates, classes, same, dropped=()):
    """Positions by a full sort of numpy's quantile, a candidate at a time."""
    nearness = {}
    for i, word in enumerate(candidates):
        cosines = [np.dot(word, t) / np.linalg.norm(word) / np.linalg.norm(t) for t in classes]
        excluded = same is not None and max(cosines) > same
        if i not in dropped:
            nearness[i] = np.inf if excluded else np.float32(np.quantile(cosines, 0.95))
    order = sorted(nearness, key=lambda i: (nearness[i], i))
    return [i for i in order[: max(1, int(0.15 * len(nearness)))] if nearness[i] < np.inf]


@pytest.mark.parametrize("same", [None, 0.95, 0.2])
@pytest.mark.parametrize(("words", "classes"), [(200, 30), (41, 1), (4, 5)])
def test_the_words_kept_are_those_of_a_loop_in_chunks_of_any_size(words, classes, same):
    candidates, ids = 3 * unit_rows(words, 8, 0), unit_rows(classes, 8, 1)
    candidates[1], candidates[2] = candidates[0], ids[0]  # a word that stands there twice, one that is a class
    dropped = np.array([i % 7 == 3 for i in range(words)])
    expected = naive_choice(candidates, ids, same, dropped.nonzero()[0])
    candidates, ids, dropped = torch.tensor(candidates), torch.tensor(ids), torch.tensor(dropped)
    for size in (1, 7, 1024):
        assert select(candidates.split(size), ids, dropped, same).tolist() == expected


@pytest.mark.parametrize("same", [None, 0.95])
@pytest.mark.parametrize(("words", "classes"), [(200, 30), (41, 1), (4, 5), (21, 3)])
def test_nearest_and_farthest_words_are_the_two_ends_of_one_order(words, classes, same):
    candidates, ids = unit_rows(words, 8, 0), unit_rows(classes, 8, 1)
    candidates[1], candidates[2] = candidates[0], ids[0]  # a word that stands there twice, one that is a class
    dropped = [i for i in range(words) if i % 7 == 3]
    nearness = {}
    for i, word in enumerate(candidates):
        cosines = ids @ word
        if i not in dropped and (same is None or max(cosines) <= same):
            nearness[i] = np.float32(np.quantile(cosines, 0.95))
    order = sorted(nearness, key=lambda i: (nearness[i], i))
    count = max(1, int(0.15 * (words - len(dropped))))
    near = count // 2
    expected = order[: count - near] + order[len(order) - near :]
    flags = torch.tensor([i in dropped for i in range(words)])
    for size in (1, 1024):
        parts = torch.tensor(candidates).split(size)
        assert select(parts, torch.tensor(ids), flags, same, BOTH_ENDS).tolist() == expected


def test_words_farthest_from_images_are_those_of_a_loop():
    words, ids, images = unit_rows(120, 8, 0), unit_rows(4, 8, 1), 5 * unit_rows(4, 8, 2)
    images[:3] += 2 * ids[:3]
    images[3] = 0  # a class without images
    words[1], words[2] = words[0], ids[0]  # a word that stands there twice, one that is a class
    seen = list(zip(ids, images, strict=True))[:3]
    means = {}
    for i, word in enumerate(words):
        pairs = [(np.dot(word, v) / np.linalg.norm(v), np.dot(t, v) / np.linalg.norm(v)) for t, v in seen]
        if all(cosine < bound for cosine, bound in pairs) and i not in (2, 5):
            means[i] = np.float32(np.mean([cosine for cosine, _ in pairs]))
    expected = sorted(means, key=lambda i: (means[i], i))[: int(0.15 * 118)]
    assert 2 not in expected and 20 < len(means) < 110
    dropped = torch.tensor([i in (2, 5) for i in range(120)])
    for size in (1, 50):
        parts = torch.tensor(words).split(size)
        found = select(parts, torch.tensor(ids), dropped, None, FROM_IMAGES, torch.tensor(images))
        assert found.tolist() == expected


def test_given_words_are_all_kept_in_their_order_but_for_class_names():
    candidates = torch.eye(4)[[2, 0, 3, 1]]
    dropped = torch.tensor([False, False, True, False])
    assert select([candidates], torch.eye(4)[:1], dropped, 0.95, GIVEN).tolist() == [0, 1, 3]
    assert select([candidates], torch.eye(4)[:1], ~dropped, 0.95, GIVEN).tolist() == [2]


def test_words_that_are_all_classes_leave_nothing_to_score_with():
    classes = torch.eye(4)[:1]
    for dropped, same, expected in ((False, None, [0]), (False, 0.95, []), (True, None, [])):
        assert select([classes], classes, torch.tensor([dropped]), same).tolist() == expected
    with pytest.raises(ValueError, match="No negative words are left"):
        negative_labels(classes, [classes[:0]])


@pytest.fixture
def wordnet(tmp_path):
    (tmp_path / "index.noun").write_text(NOUN_INDEX)
    (tmp_path / "index.adj").write_text(ADJECTIVE_INDEX)
    return tmp_path


def test_wordnets_files_are_read(wordnet):
    assert read_words(wordnet) == Words(("sea urchin", "shovel", "urchin"), ("blue",))


def test_the_authors_files_are_read_and_some_left_out(tmp_path):
    for name, words in (
        ("noun.person", "goat herder\nfox\n"),
        ("noun.plant", "aster\nfox\n"),
        ("adj.pert", "uric\n"),
        ("adj.all", "lively\naster\n"),
    ):
        (tmp_path / f"{name}.txt").write_text(words)
    assert read_words(tmp_path) == Words(("goat herder", "fox", "aster"), ("lively", "uric"))
    assert read_words(tmp_path, ["noun.person", "adj.pert"]) == Words(("aster", "fox"), ("lively",))


@pytest.mark.parametrize("words", ["words", "index", None])
def test_csp_without_takes_files_that_are_there(tmp_path, words):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "noun.plant.txt").write_text("aster\n")
    (tmp_path / "index").mkdir()
    for name in ("index.noun", "index.adj"):
        (tmp_path / "index" / name).write_text("aster n 1\n")
    given = {"id": str(tmp_path), "csp_without": ["noun.person"]} | (
        {"negative_words": tmp_path / words} if words else {}
    )
    config = SimpleNamespace(data=Data(**given), evaluation=SimpleNamespace(bank_without=None))
    message = r"has no noun\.person\.txt; it has noun\.plant" if words == "words" else "is no such folder: name one"
    with pytest.raises(ConfigError, match=rf"data\.csp_without.*{message}"):
        check_texts(config)


def test_a_text_file_gives_nouns_each_once(tmp_path):
    (tmp_path / "words.txt").write_text("rain\nsea_urchin\n\nrain\n", encoding="utf-8")
    assert read_words(tmp_path / "words.txt") == Words(("rain", "sea urchin"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match="holds no words"):
        read_words(tmp_path / "empty.txt")


def test_a_missing_wordnet_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("clip_ood.texts.wordnet.PLACES", (tmp_path / "nowhere",))
    for source in ("wordnet", tmp_path / "elsewhere"):
        with pytest.raises(FileNotFoundError, match=r"(nowhere|elsewhere).*clip-ood demo wordnet.*wordnet-base"):
            read_words(source)


@pytest.mark.skipif(not any((place / "index.noun").is_file() for place in PLACES), reason="clip-ood demo wordnet")
def test_the_real_wordnet_has_its_words():
    words = read_words("wordnet")
    assert len(words.nouns) > 100_000 and len(words.adjectives) > 10_000
    assert {"teapot", "sea urchin"} <= set(words.nouns) and "incandescent" in words.adjectives
    assert not any("_" in word or "  " in word for word in (*words.nouns, *words.adjectives))


def test_a_draw_is_the_same_each_time_and_keeps_the_order():
    words = Words(tuple(f"n{i}" for i in range(900)), tuple(f"a{i}" for i in range(100)))
    drawn = words.draw(200)
    assert drawn == words.draw(200) and len(drawn) == 200
    assert 5 < len(drawn.adjectives) < 40
    assert [int(word[1:]) for word in drawn.nouns] == sorted(int(word[1:]) for word in drawn.nouns)
    assert words.draw(None) is words and words.draw(1000) is words


def test_pools_fill_the_prompts_of_the_papers():
    words = Words(("sea urchin", "shovel"), ("blue", "wet"))
    plain, conjugated = (pool(words, ["sea urchin", "cat"]) for pool in (neglabel_pool, csp_pool))
    assert fill(plain.nouns.prompts, plain.nouns.words) == ["the nice sea urchin", "the nice shovel"]
    assert fill(plain.adjectives.prompts, plain.adjectives.words) == ["This is a blue photo", "This is a wet photo"]
    assert fill(plain.classes.prompts, plain.classes.words) == ["the nice sea urchin", "the nice cat"]
    assert conjugated.nouns.words == words.nouns
    assert len(set(conjugated.nouns.prompts)) == len(set(conjugated.classes.prompts)) == 8
    assert len(set(SUPERCLASSES)) == 14
    for word, phrase in zip(words.adjectives, conjugated.adjectives.words, strict=True):
        assert phrase.split(" ", 1)[0] == word and phrase.split(" ", 1)[1] in SUPERCLASSES
    assert are_classes([*plain.nouns.words, "Cat"], ["sea_urchin", "cat"]).tolist() == [True, False, True]
