"""Test-time methods against plain loops over images in float64, and what holds for each: order, batches, memory, ties, bad input."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import normalize

from clip_ood.detectors.names import STREAM_METHODS
from clip_ood.detectors.negative_labels import NegLabel
from clip_ood.errors import UserError
from clip_ood.outputs import NegativeLabels, Outputs, Reference
from clip_ood.stream.adaneg import AdaNeg
from clip_ood.stream.build import make, required_by
from clip_ood.stream.clipscope import CLIPScope
from clip_ood.stream.evaluation import Plan, Spread, evaluate, score_stream
from clip_ood.stream.names import read_methods
from clip_ood.stream.oodd import OODD

CLASSES, WORDS, WIDTH, IMAGES, SCALE = 4, 13, 6, 90, 6.0


def unit(rows):
    return normalize(rows.double(), dim=1)


def drawn(count, seed):
    return unit(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)))


def reference():
    texts = drawn(CLASSES, 1)
    return Reference(
        text_embeddings=texts,
        logit_scale=SCALE,
        neglabel=NegativeLabels(drawn(CLASSES, 2), drawn(WORDS, 3)),
        eoe=NegativeLabels(drawn(CLASSES, 4), drawn(WORDS, 5)),
    )


def stream(seed=6):
    """Images near the texts, so that memories fill, two of them three times, so that there are ties."""
    known = reference()
    texts = torch.cat([known.neglabel.classes, known.neglabel.negatives])
    picked = torch.randint(len(texts), (IMAGES,), generator=torch.Generator().manual_seed(seed))
    rows = unit(texts[picked] + 0.4 * drawn(IMAGES, seed))
    return rows[[*range(IMAGES), 3, 50, 3, 50]]


METHODS = {
    "adaneg": lambda: AdaNeg(reference(), length=4, groups=3),
    "adaneg_task": lambda: AdaNeg(reference(), length=4, groups=3, proxies="task"),
    "oodd": lambda: OODD(reference(), size=12, k=3),
    "clipscope": lambda: CLIPScope(reference()),
}


def softmax(values):
    return [math.exp(each) / sum(map(math.exp, values)) for each in values]


def naive_neglabel(logits, groups, seed=0):
    """NegLabel's mean over groups, of the logits of one image."""
    size = WORDS // groups
    order = torch.randperm(groups * size, generator=torch.Generator().manual_seed(seed)).tolist()
    inside, outside = logits[:CLASSES], logits[CLASSES:]
    shares = []
    for group in range(groups):
        of_group = [outside[order[group * size + place]] for place in range(size)]
        total = sum(map(math.exp, inside)) + sum(map(math.exp, of_group))
        shares.append(sum(map(math.exp, inside)) / total)
    return sum(shares) / groups


def naive_adaneg(images, batch_size, length, groups, proxies, threshold=0.5, gap=0.5, beta=5.0, weight=0.1):
    """An image, and a slot of the memory, at a time."""
    known = reference().neglabel
    texts = [*known.classes.double(), *known.negatives.double()]
    memory = [[] for _ in texts]  # (entropy, arrival, image)
    scores, arrival = [], 0
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        logits = [[SCALE * float(h @ t) for t in texts] for h in batch]
        before = [naive_neglabel(each, groups) for each in logits]
        for h, each, score in zip(batch, logits, before, strict=True):
            arrival += 1
            if score > threshold + gap * (1 - threshold):
                first, part = 0, each[:CLASSES]
            elif score < threshold - gap * threshold:
                first, part = CLASSES, each[CLASSES:]
            else:
                continue
            entropy = -sum(p * math.log(p + 1e-8) for p in softmax(part))
            own = memory[first + part.index(max(part))]
            if len(own) < length - 1:
                own.append((entropy, arrival, h))
            elif entropy < max(own)[0]:
                own.remove(max(own, key=lambda item: item[:2]))
                own.append((entropy, arrival, h))
        for h, score in zip(batch, before, strict=True):
            adapted = []
            for text, own in zip(texts, memory, strict=True):
                members = [text, *(image for _, _, image in own)]
                shares = [math.exp(-beta * (1 - float(h @ m))) if proxies == "sample" else 1.0 for m in members]
                proxy = sum(share * m for share, m in zip(shares, members, strict=True))
                adapted.append(SCALE * float(h @ proxy / proxy.norm()))
            scores.append(naive_neglabel(adapted, groups) + weight * score)
    return scores


def naive_oodd(images, batch_size, size, k):
    texts, dictionary, scores = reference().text_embeddings.double(), [], []
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        likely = [max(softmax([float(h @ t) for t in texts])) for h in batch]
        for h, score in zip(batch, likely, strict=True):
            dictionary.append((score, h))
            if len(dictionary) > size:
                worst = max(range(len(dictionary)), key=lambda place: (dictionary[place][0], place))
                dictionary.pop(worst)
        for h, score in zip(batch, likely, strict=True):
            cosines = sorted((float(h @ each) for _, each in dictionary), reverse=True)
            scores.append(score - cosines[min(k, len(cosines)) - 1])
    return scores


def naive_clipscope(images):
    known, counts, scores = reference().eoe, [1] * CLASSES, []
    for h in images:
        logits = [SCALE * float(h @ t) for t in (*known.classes.double(), *known.negatives.double())]
        inside = softmax(logits[:CLASSES])
        predicted = inside.index(max(inside))
        share = sum(softmax(logits)[:CLASSES])
        scores.append(inside[predicted] * share / (counts[predicted] / sum(counts)))
        counts[predicted] += 1
    return scores


def naive(name, images, batch_size):
    if name == "clipscope":
        return naive_clipscope(images)
    if name == "oodd":
        return naive_oodd(images, batch_size, 12, 3)
    return naive_adaneg(images, batch_size, 4, 3, "task" if name == "adaneg_task" else "sample")


@pytest.mark.parametrize("batch_size", [1, 7, 200])
@pytest.mark.parametrize("name", METHODS)
def test_scores_are_those_of_a_plain_loop(name, batch_size):
    images = stream()
    found = score_stream(METHODS[name](), images, batch_size)
    torch.testing.assert_close(
        found, torch.tensor(naive(name, images, batch_size), dtype=torch.float64), rtol=0, atol=1e-12
    )


def test_the_stream_fills_memories():
    method = METHODS["adaneg"]()
    score_stream(method, stream(), 7)
    counts = method.memory["labels"].bincount(minlength=CLASSES + WORDS)
    assert counts.max() == 3 and (counts[:CLASSES] > 0).any() and (counts[CLASSES:] > 0).any()


@pytest.mark.parametrize("name", METHODS)
def test_the_order_matters_and_the_same_order_gives_the_same_bits(name):
    images, back = stream(), torch.arange(len(stream()) - 1, -1, -1)
    first, again = (score_stream(METHODS[name](), images, 8) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, score_stream(METHODS[name](), images[back], 8)[back], atol=1e-6)


def test_batches_matter_to_those_that_remember_a_batch_before_they_score_it():
    scores = {
        name: [score_stream(make_it(), stream(), size) for size in (1, 5, 94)] for name, make_it in METHODS.items()
    }
    assert all(torch.allclose(scores["clipscope"][0], each, atol=1e-14) for each in scores["clipscope"])
    assert not torch.allclose(scores["oodd"][0], scores["oodd"][2])
    assert not torch.allclose(scores["adaneg"][0], scores["adaneg"][2])


@pytest.mark.parametrize("name", METHODS)
def test_a_restored_memory_goes_on_as_if_nothing_had_happened(name):
    images = stream()
    whole = score_stream(METHODS[name](), images, 8)
    first, second = METHODS[name](), METHODS[name]()
    begun = score_stream(first, images[:40], 8)
    second.restore(first.memory)
    assert torch.equal(torch.cat([begun, score_stream(second, images[40:], 8)]), whole)


@pytest.mark.parametrize("name", METHODS)
def test_the_memory_is_bounded_and_an_empty_batch_leaves_it_alone(name):
    method = METHODS[name]()
    score_stream(method, torch.cat([stream(seed) for seed in range(6, 10)]), 16)
    before = {key: value.clone() for key, value in method.memory.items()}
    assert all(method.rows[0] <= len(value) <= method.rows[1] for value in before.values())
    assert method.score(Outputs(embeddings=torch.empty(0, WIDTH))).shape == (0,)
    assert all(torch.equal(value, before[key]) for key, value in method.memory.items())


def test_adaneg_that_remembers_nothing_is_neglabel():
    images = stream()
    method = AdaNeg(reference(), groups=3, threshold=0.5, gap=1.0)  # no score is above 1 or below 0
    expected = NegLabel(reference(), groups=3).score(Outputs(embeddings=images)).double()
    torch.testing.assert_close(score_stream(method, images, 9), 1.1 * expected, rtol=0, atol=1e-6)


def test_oodd_keeps_the_earlier_of_equally_unlikely_images():
    axes = torch.eye(WIDTH)
    images = torch.cat([axes[:1], axes[2:]])  # the first is like a class, and the others are equally unlike both
    for size in (1, 7):
        method = OODD(Reference(text_embeddings=axes[:2]), size=2, k=1)
        score_stream(method, images, size)
        assert torch.equal(method.memory["embeddings"], axes[2:4].double())


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("outputs", "told"),
    [
        (Outputs(features=torch.ones(2, WIDTH)), "needs embeddings"),
        (Outputs(embeddings=torch.ones(2, 3)), r"\(2, 3\), expected \(n, 6\)"),
        (Outputs(embeddings=torch.full((2, WIDTH), torch.nan)), "not finite"),
    ],
)
def test_images_that_cannot_be_scored_are_refused_and_not_remembered(name, outputs, told):
    method = METHODS[name]()
    score_stream(method, stream()[:20], 5)
    before = method.memory
    with pytest.raises(UserError, match=told):
        method.score(outputs)
    assert method.memory is before


@pytest.mark.parametrize("name", METHODS)
def test_a_memory_of_another_kind_is_refused(name):
    method, other = METHODS[name](), METHODS["oodd" if name != "oodd" else "clipscope"]()
    score_stream(method, stream(), 8)
    good = method.memory
    first = next(iter(good))
    for wrong in (
        other.memory,
        {},
        good | {first: good[first].to(torch.float16)},
        good | {first: good[first][None]},
        {key: value.repeat(40, *[1] * (value.ndim - 1)) for key, value in good.items()},
    ):
        with pytest.raises(UserError, match="no memory of it"):
            METHODS[name]().restore(wrong)


@pytest.mark.parametrize(
    ("name", "changed", "told"),
    [
        ("adaneg", lambda m: m | {"labels": m["labels"] + 100}, "names texts that there are not"),
        ("adaneg", lambda m: m | {"labels": m["labels"] * 0}, "too many images"),
        ("adaneg", lambda m: m | {"labels": m["labels"][:-1]}, "the same for all"),
        ("oodd", lambda m: m | {"scores": m["scores"] * torch.nan}, "not finite"),
        ("clipscope", lambda m: {"counts": m["counts"] * 0}, "below 1"),
        ("clipscope", lambda m: {"counts": m["counts"][:-1]}, "expected 4 to 4"),
    ],
)
def test_a_changed_memory_is_refused(name, changed, told):
    method = METHODS[name]()
    score_stream(method, stream(), 8)
    with pytest.raises(UserError, match=told):
        METHODS[name]().restore(changed(method.memory))


@pytest.mark.parametrize(
    ("method", "told"),
    [
        ("adanag", "unknown name 'adanag'; nearest: adaneg"),
        ("knn", "name it under detectors"),
        ({"name": "oodd", "size": 0}, "size = 0"),
        ({"name": "oodd", "k": -1}, "k = -1"),
        ({"name": "oodd", "tau": 0.0}, "tau = 0"),
        ({"name": "oodd", "sise": 3}, "unknown parameter 'sise', expected size, k, tau; nearest: size"),
        ({"name": "oodd", "size": "many"}, "size = many, expected a whole number"),
        ({"name": "adaneg", "length": 1}, "length = 1"),
        ({"name": "adaneg", "threshold": 1.5}, "threshold = 1.5"),
        ({"name": "adaneg", "proxies": "mean"}, "expected sample or task"),
        ({"name": "adaneg", "beta": -1.0}, "beta = -1"),
        ({"size": 3}, "the key 'name'"),
        ({"name": "oodd", "as": "a/b"}, "without slashes"),
    ],
)
def test_a_method_that_is_none_is_refused(method, told):
    with pytest.raises(UserError, match=told):
        make(read_methods([method])[0], reference())


def test_lists_of_methods_are_checked():
    for methods, told in (([], "the list is empty"), (["oodd", "oodd"], "2 times")):
        with pytest.raises(UserError, match=told):
            read_methods(methods)
    labels = [spec.label for spec in read_methods(["oodd", {"name": "oodd", "size": 9, "as": "small"}])]
    assert labels == ["oodd", "small"]
    assert required_by(["adaneg", "clipscope"]) == {"logit_scale", "neglabel", "eoe"}


@pytest.mark.parametrize("name", STREAM_METHODS)
def test_a_method_without_what_it_needs_says_what_that_is(name):
    with pytest.raises(UserError, match=f"{name} needs .*leave it out"):
        make(read_methods([name])[0], Reference())


@pytest.mark.parametrize("share", [None, 0.1, 0.5, 0.9])
def test_a_stream_holds_each_image_once_at_the_share_that_is_asked_for(share):
    plan = Plan((3,), 8, share)
    order = plan.order(3, 40, 25)
    n_id, n_ood = plan.numbers(40, 25)
    assert len(order.unique()) == len(order) == n_id + n_ood and int((order < 40).sum()) == n_id
    assert share is None or n_ood / len(order) == pytest.approx(share, abs=0.02)
    assert (n_id, n_ood) != (40, 25) or share is None
    assert torch.equal(order, plan.order(3, 40, 25)) and not torch.equal(order, plan.order(4, 40, 25))


def test_results_are_those_of_each_order_alone():
    inside, outside = stream(6), {"near": lambda: stream(7)[:30], "far": lambda: drawn(20, 8)}
    plan = Plan((1, 2, 3), 8)
    rows = evaluate({"oodd": METHODS["oodd"], "clipscope": METHODS["clipscope"]}, inside, outside, plan)
    assert [(row.method, row.ood) for row in rows] == [
        (method, ood) for method in ("oodd", "clipscope") for ood in ("near", "far", "mean")
    ]
    for row in rows:
        if row.ood == "mean":
            continue
        for seed, auroc, fpr95 in zip(plan.seeds, row.values["auroc"], row.values["fpr95"], strict=True):
            others = outside[row.ood]()
            order = plan.order(seed, len(inside), len(others))
            scores = score_stream(METHODS[row.method](), torch.cat([inside, others])[order], 8)
            known, odd = scores[order < len(inside)], scores[order >= len(inside)]
            pairs = (known[:, None] > odd).double() + 0.5 * (known[:, None] == odd)
            assert auroc == pytest.approx(float(pairs.mean()), abs=1e-12)
            threshold = known.sort(descending=True).values[math.ceil(0.95 * len(known) - 1e-9) - 1]
            assert fpr95 == pytest.approx(float((odd >= threshold).double().mean()), abs=1e-12)
    means = {(row.method, row.ood): row.values["auroc"] for row in rows}
    assert means["oodd", "mean"] == pytest.approx(
        [(a + b) / 2 for a, b in zip(means["oodd", "near"], means["oodd", "far"], strict=True)]
    )


def test_the_spread_of_one_order_has_no_deviation():
    assert Spread.of([0.5]) == Spread(0.5, None, 0.5, 0.5)
    assert Spread.of([0.4, 0.6]).std == pytest.approx(0.02**0.5)
