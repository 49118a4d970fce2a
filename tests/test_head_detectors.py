"""GEN, KL matching, residual, ViM, NNGuide, fDBD, SHE, NCI and the ensemble, against loops in float64 from their formulas."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from detector_data import BIAS, CLASSES, REFERENCE, TEST, TEXT, TRAIN, WEIGHT, WIDTH, close, fitted, part, sample
from torch import Tensor

from clip_ood.detectors.ensemble import Ensemble
from clip_ood.detectors.fdbd import FDBD
from clip_ood.detectors.gen import GEN
from clip_ood.detectors.kl_matching import KLMatching
from clip_ood.detectors.nci import NCI
from clip_ood.detectors.negative_labels import NegLabel
from clip_ood.detectors.nnguide import NNGuide
from clip_ood.detectors.she import SHE
from clip_ood.detectors.vim import Residual, ViM
from clip_ood.outputs import NegativeLabels, Outputs, Reference


def heads(features: Tensor, weight: Tensor, bias: Tensor) -> list[list[float]]:
    """Logits of each image, one product at a time."""
    w, b = weight.double().tolist(), bias.double().tolist()
    return [
        [sum(map(math.prod, zip(f, row, strict=True))) + c for row, c in zip(w, b, strict=True)]
        for f in features.double().tolist()
    ]


def softmax(z: list[float]) -> list[float]:
    terms = [math.exp(value - max(z)) for value in z]
    return [term / sum(terms) for term in terms]


def energy(z: list[float]) -> float:
    return max(z) + math.log(sum(math.exp(value - max(z)) for value in z))


def naive_gen(train: Outputs, test: Outputs, head: Reference, gamma: float = 0.1, m: int = 100) -> list[float]:
    scores = []
    for z in test.logits.double().tolist():
        p = sorted(softmax(z), reverse=True)[:m]
        rest = [sum(softmax(z)) - value if value < 0.5 else sum(sorted(softmax(z))[:-1]) for value in p]
        scores.append(-sum((value * other) ** gamma for value, other in zip(p, rest, strict=True)))
    return scores


def naive_kl_matching(train: Outputs, test: Outputs, head: Reference) -> list[float]:
    groups = {}
    for z in train.logits.double().tolist():
        groups.setdefault(z.index(max(z)), []).append(softmax(z))
    typical = [[sum(column) / len(rows) for column in zip(*rows, strict=True)] for rows in groups.values()]
    scores = []
    for z in test.logits.double().tolist():
        p = softmax(z)
        terms = [[a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0] for q in typical]
        scores.append(-min(map(sum, terms)))
    return scores


def naive_lengths(train: Outputs, rows: Tensor, head: Reference, dim: int | None = None) -> list[float]:
    """By the principal directions of the centred images themselves, which are taken out one after the other."""
    weight, bias = head.weight.double(), head.bias.double()
    origin = -torch.linalg.lstsq(weight, bias[:, None], driver="gelsd").solution.squeeze(1)
    centred = train.features.double() - origin
    _, sizes, directions = torch.linalg.svd(centred, full_matrices=False)
    rank = int((sizes.square() > 1e-10 * sizes[0].square()).sum())
    count, width = centred.shape
    published = 1000 if width >= 2048 else 512 if width >= 768 else width // 2
    usual = published if count > width and published < rank else rank // 2
    lengths = []
    for f in rows.double():
        rest = f - origin
        for direction in directions[: dim or usual]:
            rest = rest - (rest @ direction) * direction
        lengths.append(float(rest.norm()))
    return lengths


def naive_residual(train: Outputs, test: Outputs, head: Reference, dim: int | None = None) -> list[float]:
    return [-length for length in naive_lengths(train, test.features, head, dim)]


def naive_vim(train: Outputs, test: Outputs, head: Reference, dim: int | None = None) -> list[float]:
    largest = [max(z) for z in heads(train.features, head.weight, head.bias)]
    alpha = sum(largest) / sum(naive_lengths(train, train.features, head, dim))
    lengths = naive_lengths(train, test.features, head, dim)
    return [energy(z) - alpha * length for z, length in zip(test.logits.double().tolist(), lengths, strict=True)]


def naive_nnguide(train: Outputs, test: Outputs, head: Reference, k: int = 100) -> list[float]:
    """The bank of up to 1000 images is used as a whole."""
    energies = [energy(z) for z in heads(train.features, head.weight, head.bias)]
    bank = [f / f.norm() for f in train.features.double()]
    scores = []
    for f, z in zip(test.features.double(), test.logits.double().tolist(), strict=True):
        guides = sorted((float(f / f.norm() @ b) * e for b, e in zip(bank, energies, strict=True)), reverse=True)[:k]
        scores.append(energy(z) * sum(guides) / len(guides))
    return scores


def naive_fdbd(train: Outputs, test: Outputs, head: Reference) -> list[float]:
    mean = train.features.double().mean(dim=0)
    weight = head.weight.double()
    scores = []
    for f, z in zip(test.features.double(), test.logits.double().tolist(), strict=True):
        y = z.index(max(z))
        gaps = [float((weight[y] - weight[c]).norm()) for c in range(len(z))]
        total = sum((z[y] - z[c]) / gap for c, gap in enumerate(gaps) if gap > 0)
        scores.append(total / float((f - mean).norm()))
    return scores


def naive_nci(train: Outputs, test: Outputs, head: Reference, alpha: float = 1e-4) -> list[float]:
    count = len(train)
    mean = [sum(column) / count for column in zip(*train.features.double().tolist(), strict=True)]
    weight = head.weight.double().tolist()
    scores = []
    for f, z in zip(test.features.double().tolist(), test.logits.double().tolist(), strict=True):
        centred = [a - b for a, b in zip(f, mean, strict=True)]
        along = sum(map(math.prod, zip(weight[z.index(max(z))], centred, strict=True)))
        scores.append(along / math.hypot(*centred) + alpha * sum(map(abs, f)))
    return scores


def naive_she(train: Outputs, test: Outputs, head: Reference) -> list[float]:
    groups = {}
    for f, z, label in zip(train.features.double(), train.logits.tolist(), train.labels.tolist(), strict=True):
        if z.index(max(z)) == label:
            groups.setdefault(label, []).append(f)
    means = {label: sum(rows) / len(rows) for label, rows in groups.items()}
    scores = []
    for f, z in zip(test.features.double(), test.logits.tolist(), strict=True):
        scores.append(float(f @ means[max(means, key=lambda c, z=z: (z[c], -c))]))
    return scores


def naive_ensemble(train: Outputs, test: Outputs, head: Reference) -> list[float]:
    scores = []
    for h, z in zip(test.embeddings.double(), test.logits.double().tolist(), strict=True):
        text = softmax([head.logit_scale * float(h @ t) for t in TEXT.double()])
        scores.append(max((a + b) / 2 for a, b in zip(text, softmax(z), strict=True)))
    return scores


NAIVE = {
    GEN: naive_gen,
    KLMatching: naive_kl_matching,
    Residual: naive_residual,
    ViM: naive_vim,
    NNGuide: naive_nnguide,
    FDBD: naive_fdbd,
    SHE: naive_she,
    NCI: naive_nci,
    Ensemble: naive_ensemble,
}


def labelled_right(outputs: Outputs) -> Outputs:
    """Every other image is predicted as its label."""
    logits = outputs.logits.clone()
    rows = torch.arange(0, len(outputs), 2)
    logits[rows, outputs.labels[rows]] += 30
    return replace(outputs, logits=logits)


def cases() -> dict[str, tuple[Outputs, Outputs, Reference]]:
    train, test = labelled_right(TRAIN), TEST
    wide, few = labelled_right(sample(20, 3, width=40)), sample(9, 4, width=40)
    head = torch.randn(CLASSES, 40, generator=torch.Generator().manual_seed(8)) / 9
    lonely = train.labels.clone()
    lonely[lonely == 3] = 4
    lonely[0] = 3
    absent = train.labels.where(train.labels != 1, 2)
    tied = replace(test, logits=test.logits.round(decimals=0).clamp(-2, 2))
    same_weights = WEIGHT.clone()
    same_weights[1] = same_weights[0]
    return {
        "random": (train, test, REFERENCE),
        "tied logits": (train, tied, REFERENCE),
        "duplicate rows": (part(train, torch.arange(120) // 4), test, REFERENCE),
        "a class with one image": (replace(train, labels=lonely), test, REFERENCE),
        "an absent class": (labelled_right(replace(train, labels=absent)), test, REFERENCE),
        "more dimensions than images": (wide, few, replace(REFERENCE, weight=head)),
        "constant features": (replace(train, features=torch.full((120, WIDTH), 2.0)), test, REFERENCE),
        "classes of equal weights": (train, test, replace(REFERENCE, weight=same_weights)),
        "half precision": (replace(train, features=train.features.half()), test, REFERENCE),
        "sure logits": (train, replace(test, logits=test.logits * 5), REFERENCE),
    }


@pytest.mark.parametrize("case", cases())
@pytest.mark.parametrize("cls", NAIVE)
def test_scores_equal_the_formula(cls, case):
    train, test, reference = cases()[case]
    scores = fitted(cls(reference), train).score(test)
    assert scores.isfinite().all()
    close(scores, NAIVE[cls](train, test, reference), 1e-5 if case != "half precision" else 1e-4)


def test_parameters_equal_the_formula():
    close(GEN(gamma=0.5, m=3).score(TEST), naive_gen(TRAIN, TEST, REFERENCE, 0.5, 3))
    for dim in (1, 5, WIDTH - 1):
        close(fitted(Residual(REFERENCE, dim=dim)).score(TEST), naive_residual(TRAIN, TEST, REFERENCE, dim), 1e-4)
        close(fitted(ViM(REFERENCE, dim=dim)).score(TEST), naive_vim(TRAIN, TEST, REFERENCE, dim), 1e-4)
    for alpha in (0, 0.1):
        close(fitted(NCI(REFERENCE, alpha=alpha)).score(TEST), naive_nci(TRAIN, TEST, REFERENCE, alpha))
    for k in (1, 120):
        close(fitted(NNGuide(REFERENCE, k=k)).score(TEST), naive_nnguide(TRAIN, TEST, REFERENCE, k))


@pytest.mark.parametrize(("width", "principal"), [(512, 256), (768, 512), (1024, 512), (2048, 1000)])
def test_the_principal_space_is_the_published_one(width, principal):
    """Against ViM's published formula in float64: the residual is the part of f − u in the D − d smallest directions."""
    generator = torch.Generator().manual_seed(width)
    scale = torch.linspace(2, 0.1, width)
    train, test = (torch.randn(n, width, generator=generator) * scale + 1 for n in (width + 60, 20))
    head = Reference(weight=torch.randn(10, width, generator=generator) / width**0.5, bias=torch.linspace(-1, 1, 10))
    weight, bias = head.weight.double(), head.bias.double()
    origin = -torch.linalg.pinv(weight) @ bias
    centred = train.double() - origin
    null = torch.linalg.eigh(centred.T @ centred / len(centred)).eigenvectors[:, : width - principal]
    residual, of_train = ((rows.double() - origin) @ null for rows in (test, train))
    alpha = (train.double() @ weight.T + bias).amax(dim=1).mean() / of_train.norm(dim=1).mean()
    outputs = [
        Outputs(rows, logits=rows @ head.weight.T + head.bias, indices=torch.arange(len(rows)))
        for rows in (train, test)
    ]
    found = fitted(Residual(head), outputs[0]), fitted(ViM(head), outputs[0])
    close(found[0].score(outputs[1]), -residual.norm(dim=1))
    virtual = (test.double() @ weight.T + bias).logsumexp(dim=1) - alpha * residual.norm(dim=1)
    close(found[1].score(outputs[1]), virtual, 1e-4)
    assert found[0].notes == found[1].notes == []


def test_a_principal_space_other_than_the_published_one_is_told():
    head = Reference(weight=torch.eye(3, 40), bias=torch.zeros(3))
    generator = torch.Generator().manual_seed(0)
    full = torch.randn(80, 40, generator=generator)
    structural = full - full.mean(dim=1, keepdim=True)  # as a final LayerNorm leaves it: rank 39
    for rows, dim in ((full, 20), (structural, 20), (full[:41], 20), (full[:40], 20), (full[:30], 15)):
        found = fitted(Residual(head), Outputs(rows))
        assert (40 - found.outside.shape[1] if found.principal is None else found.principal.shape[1]) == dim
        assert bool(found.notes) == (len(rows) <= 40)
    flat = full @ torch.diag((torch.arange(40) < 20).float())  # of rank 20: the published 20 would leave nothing
    (note,) = fitted(Residual(head), Outputs(flat)).notes
    assert "of 10 dimensions, half the rank 20 of 80 ID training images: the published 20 needs a rank above 20" in note
    assert fitted(Residual(head, dim=7), Outputs(full[:30])).notes == []


def test_scores_of_awkward_images_are_finite():
    mean = TRAIN.features.mean(dim=0, keepdim=True)
    zero = torch.zeros(1, WIDTH)
    logits = torch.tensor([[1e4, 0, 0, 0, 0], [2.0, 2, 2, 2, 2]])
    odd = Outputs(torch.cat([mean, zero]), TEXT[:2], logits, None, torch.arange(2))
    for cls in NAIVE:
        assert fitted(cls(REFERENCE), labelled_right(TRAIN)).score(odd).isfinite().all(), cls


def test_kl_matching_of_an_image_unlike_any_class_is_finite():
    sure = Outputs(logits=torch.tensor([[800.0, 0, 0], [0, 800, 0]]))
    scores = fitted(KLMatching(), sure).score(Outputs(logits=torch.tensor([[0.0, 0, 900], [800, 0, 0]])))
    assert scores.isfinite().all() and scores[0] < -500 and scores[1] == 0


def test_she_skips_a_class_without_correctly_predicted_images():
    wrong = replace(TRAIN, logits=torch.eye(CLASSES)[(TRAIN.labels + (TRAIN.labels == 2)) % CLASSES])
    scores = fitted(SHE(), wrong).score(replace(TEST, logits=torch.tensor([[0.0, 1, 9, 0, 0]]).expand(30, -1)))
    mean = TRAIN.features[TRAIN.labels == 1].double().mean(dim=0)
    close(scores, TEST.features.double() @ mean)


def test_the_images_that_guide_do_not_depend_on_their_order():
    bank = sample(2500, 11)
    shuffled = part(bank, torch.randperm(2500, generator=torch.Generator().manual_seed(1)))
    one, other = fitted(NNGuide(REFERENCE), bank), fitted(NNGuide(REFERENCE), shuffled)
    assert one.guides.shape == (1000, WIDTH)
    assert torch.equal(one.guides, other.guides)
    rows = one.bank.draw(1000, 0)
    assert len(rows.unique(dim=0)) == 1000
    assert not torch.equal(rows, fitted(NNGuide(REFERENCE, seed=1), bank).bank.draw(1000, 1))
    share = [
        float((one.bank.draw(n, 3) == bank.features[:1250, None].double()).all(2).any(0).sum()) / n for n in (500,)
    ]
    assert 0.4 < share[0] < 0.6  # drawn from the first half as from the second


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GEN(gamma=0), "gen: gamma = 0, expected"),
        (lambda: GEN(m=0), "gen: m = 0, expected"),
        (lambda: ViM(REFERENCE, dim=0), "vim: dim = 0, expected"),
        (lambda: fitted(ViM(REFERENCE, dim=WIDTH)), f"vim: dim = {WIDTH}, expected less than {WIDTH}, the rank"),
        (lambda: ViM(Reference(weight=WEIGHT)), "vim: needs bias in the reference"),
        (lambda: NNGuide(REFERENCE, k=0), "nnguide: k = 0, expected"),
        (lambda: fitted(NNGuide(REFERENCE, k=121)), "nnguide: k = 121, but 120 images of the bank are drawn"),
        (lambda: fitted(NNGuide(REFERENCE), replace(TRAIN, indices=None)), "needs the indices of all"),
        (lambda: fitted(SHE(), replace(TRAIN, labels=torch.full((120,), -1))), "she: the head predicts no ID"),
        (lambda: Ensemble(replace(REFERENCE, text_embeddings=TEXT[:3])).score(TEST), "ensemble: the head has 5"),
        (lambda: Residual(Reference(bias=BIAS)), "residual: needs weight in the reference"),
    ],
)
def test_what_is_wrong_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("cls", [KLMatching, Residual, ViM, NNGuide, FDBD, SHE])
def test_without_images_to_learn_from_it_is_an_error(cls):
    with pytest.raises(ValueError, match=f"{cls.name}: (no|the head predicts no) ID training image"):
        fitted(cls(REFERENCE), part(TRAIN, slice(0, 0)))


def test_negative_labels_in_float32_give_the_score_of_float64():
    generator = torch.Generator().manual_seed(0)
    text, words = (torch.nn.functional.normalize(torch.randn(n, 512, generator=generator), dim=1) for n in (50, 3000))
    share = torch.rand(400, 1, generator=generator)  # from words to classes
    drawn = torch.randint(50, (400,), generator=generator), torch.randint(3000, (400,), generator=generator)
    embeddings = torch.nn.functional.normalize(share * text[drawn[0]] + (1 - share) * words[drawn[1]], dim=1)
    detector = NegLabel(Reference(logit_scale=100.0, neglabel=NegativeLabels(text, words)))
    labels = detector.labels.double()
    logits = 100 * embeddings.double() @ torch.nn.functional.normalize(labels, dim=1).T
    classes = logits[:, :50].exp().sum(dim=1, keepdim=True)
    groups = logits[:, 50:].unflatten(1, (100, 30)).exp().sum(dim=2)
    expected = (classes / (classes + groups)).mean(dim=1)
    assert ((expected > 0.1) & (expected < 0.9)).sum() > 20
    torch.testing.assert_close(detector.score_with_grad(Outputs(embeddings=embeddings)), expected, rtol=0, atol=1e-5)
    low = detector.score(Outputs(embeddings=embeddings[:7]))
    torch.testing.assert_close(low.double(), expected[:7], rtol=0, atol=1e-5)


def test_a_fit_multiplies_in_full_precision_whatever_the_program_allows(monkeypatch):
    seen, product = [], torch.addmm
    monkeypatch.setattr(
        torch, "addmm", lambda *args: seen.append(torch.get_float32_matmul_precision()) or product(*args)
    )
    torch.set_float32_matmul_precision("medium")
    try:
        fitted(ViM(REFERENCE, dim=3))
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {"highest"}
