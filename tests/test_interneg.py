"""InterNeg's test-time half against a plain loop in float64: AdamW written out, the text tower a layer at a time, one image at a time."""

from __future__ import annotations

import math
from dataclasses import replace

import open_clip
import pytest
import torch
from test_stream_methods import softmax
from torch.nn.functional import normalize

from clip_ood.backbones.create import create_backbone
from clip_ood.config.schema import BackboneConfig
from clip_ood.detectors.negative_labels import NegLabel
from clip_ood.errors import UserError
from clip_ood.outputs import NegativeLabels, Outputs, Reference
from clip_ood.prompt_sets import PROMPT_SETS, templates
from clip_ood.stream import inversion
from clip_ood.stream.evaluation import score_stream
from clip_ood.stream.interneg import InterNeg
from clip_ood.stream.inversion import invert

CLASSES, WORDS, WIDTH, SCALE = 3, 11, 16, 8.0
PROMPTS = templates(PROMPT_SETS["openai_80"])
PARAMETERS = {"length": 9, "threshold": 0.72, "groups": 4}


@pytest.fixture(scope="module")
def tower(root):
    return create_backbone(BackboneConfig(model=f"local-dir:{root}/clip")).text_side()


def drawn(count, seed):
    return normalize(torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed)).double(), dim=1)


@pytest.fixture(scope="module")
def known(tower):
    """Classes and words as this tower reads them, words with noise; mean images that are not where their class's text is."""
    classes = tower.encode_text(["the nice cat", "the nice dog", "the nice fox"]).double()
    images = normalize(classes + 0.8 * drawn(CLASSES, 2), dim=1)
    words = tower.encode_text([f"the nice {number}" for number in range(WORDS)]).double()
    return Reference(
        logit_scale=SCALE,
        neglabel=NegativeLabels(classes, normalize(words + 0.8 * drawn(WORDS, 3), dim=1)),
        class_images=torch.cat([images[:2], torch.zeros(1, WIDTH)]),  # the last class has no training image
        text_tower=lambda: tower,
    )


@pytest.fixture(scope="module")
def stream(known):
    texts = torch.cat([known.neglabel.classes, known.neglabel.negatives])
    picked = torch.randint(len(texts), (40,), generator=torch.Generator().manual_seed(4))
    return normalize(texts[picked] + 0.7 * drawn(40, 5), dim=1)


class Clip:
    """The text tower in float64, written out but for its blocks."""

    def __init__(self, root):
        self.model = open_clip.create_model(f"local-dir:{root}/clip").eval().double().requires_grad_(False)
        tokenize = open_clip.get_tokenizer(f"local-dir:{root}/clip")
        (self.dollar,) = {int(token) for token in tokenize(["$"])[0] if 0 < token < 49406}
        self.tokens = tokenize([prompt.replace("{}", " $ ") for prompt in PROMPTS])

    def read(self, prompt, vector):
        tokens, model = self.tokens[prompt], self.model
        x = model.token_embedding(tokens)
        x = torch.where((tokens == self.dollar)[:, None], vector, x) + model.positional_embedding
        x = model.ln_final(model.transformer(x[None], attn_mask=model.attn_mask.double())[0])
        x = x[tokens.argmax()] @ model.text_projection
        return x / x.norm()


def naive_inversion(clip, images, steps, seed):
    """AdamW for one image after the other; the gradient is that of the mean over the images."""
    generator = torch.Generator().manual_seed(seed)
    begun = 0.02 * torch.randn(len(images), 32, generator=generator)
    prompts = torch.randint(len(PROMPTS), (steps, len(images)), generator=generator)
    found = []
    for number, h in enumerate(images):
        v, first, second = begun[number].double(), 0.0, 0.0
        for step in range(1, steps + 1):
            v.requires_grad_()
            loss = (1 - clip.read(prompts[step - 1, number], v) @ h) / len(images)
            (gradient,) = torch.autograd.grad(loss, v)
            v = v.detach() * (1 - 0.02 * 0.01)
            first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
            v = v - 0.02 * (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        found.append(clip.read(prompts[-1, number], v))
    return torch.stack(found)


def naive_neglabel(h, classes, negatives, groups):
    size = len(negatives) // groups
    order = torch.randperm(groups * size, generator=torch.Generator().manual_seed(0)).tolist()
    shares = []
    for group in range(groups):
        of_group = [negatives[order[group * size + place]] for place in range(size)]
        shares.append(sum(softmax([SCALE * float(h @ t) for t in [*classes, *of_group]])[: len(classes)]))
    return sum(shares) / groups


def naive(clip, known, images, batch_size, length=2000, threshold=0.35, groups=5, steps=10):
    classes, bank, scores = list(known.neglabel.classes), [], []
    inverted = farther = 0
    for start in range(0, len(images), batch_size):
        batch = images[start : start + batch_size]
        negatives = [*known.neglabel.negatives, *(u for _, u in bank)]
        unknown = [h for h in batch if naive_neglabel(h, classes, negatives, groups) < threshold]
        for u in naive_inversion(clip, torch.stack(unknown), steps, 0) if unknown else ():
            inverted += 1
            gaps = [float(t @ v - u @ v) for t, v in zip(classes, known.class_images, strict=True) if v.any()]
            if min(gaps) > 0:
                farther += 1
                bank.append((sum(gaps) / len(gaps), u))
        bank = sorted(bank, key=lambda item: -item[0])[:length]
        negatives = [*known.neglabel.negatives, *(u for _, u in bank)]
        scores += [naive_neglabel(h, classes, negatives, groups) for h in batch]
    return scores, bank, (inverted, farther)


def test_inversions_are_those_of_a_plain_loop(root, tower, stream):
    found = invert(tower, stream[:6], 10, 3)
    torch.testing.assert_close(found, naive_inversion(Clip(root), stream[:6], 10, 3), rtol=0, atol=1e-4)


def test_inversions_come_near_their_images(tower):
    texts = tower.encode_text(["a photo of a red house", "two green birds", "seven old ships"]).double()
    begun, after = ((invert(tower, texts, steps, 0) * texts).sum(dim=1).mean() for steps in (1, 30))
    assert after > begun + 0.01


@pytest.mark.parametrize("batch_size", [7, 40])
def test_scores_are_those_of_a_plain_loop(root, known, stream, batch_size):
    method = InterNeg(known, **PARAMETERS)
    found = score_stream(method, stream, batch_size)
    expected, bank, (inverted, farther) = naive(Clip(root), known, stream, batch_size, **PARAMETERS)
    assert len(stream) > inverted > farther > PARAMETERS["length"] == len(bank)  # each branch is taken
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-4)
    torch.testing.assert_close(method.memory["embeddings"], torch.stack([u for _, u in bank]), rtol=0, atol=1e-3)
    plain = NegLabel(known, groups=4).score(Outputs(embeddings=stream)).double()
    assert (found - plain).abs().max() > 1e-3


def test_the_same_stream_has_the_same_bits_and_another_order_others(known, stream):
    first, again = (score_stream(InterNeg(known, **PARAMETERS), stream, 8) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, score_stream(InterNeg(known, **PARAMETERS), stream.flip(0), 8).flip(0), atol=1e-6)


def test_a_restored_memory_goes_on_as_if_nothing_had_happened(known, stream):
    whole = score_stream(InterNeg(known, **PARAMETERS), stream, 8)
    first, second = InterNeg(known, **PARAMETERS), InterNeg(known, **PARAMETERS)
    begun = score_stream(first, stream[:16], 8)
    second.restore(first.memory)
    assert torch.equal(torch.cat([begun, score_stream(second, stream[16:], 8)]), whole)


def test_texts_that_are_read_in_parts_are_the_same(tower, stream, monkeypatch):
    whole = invert(tower, stream[:9], 4, 0)
    monkeypatch.setattr(inversion, "TEXTS", 4)
    torch.testing.assert_close(invert(tower, stream[:9], 4, 0), whole, rtol=0, atol=1e-4)


def test_the_tower_learns_nothing_and_no_image_asks_for_it_in_vain(known, tower, stream):
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    method = InterNeg(known, **PARAMETERS)
    with torch.inference_mode():
        score_stream(method, stream, 8)
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert all(value.grad is None for value in tower.parameters())

    def made():
        raise AssertionError("the text tower was made")

    calm = InterNeg(replace(known, text_tower=made), threshold=0.0)  # no score is below 0
    expected = NegLabel(known, groups=5).score(Outputs(embeddings=stream)).double()
    torch.testing.assert_close(score_stream(calm, stream, 8), expected, rtol=0, atol=1e-6)
    assert calm.score(Outputs(embeddings=torch.empty(0, WIDTH))).shape == (0,)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda m: m | {"scores": m["scores"].flip(0)}, "not in order"),
        (lambda m: m | {"embeddings": 2 * m["embeddings"]}, "not of unit norm"),
        (lambda m: {name: value.repeat(9, *[1] * (value.ndim - 1)) for name, value in m.items()}, "expected 0 to 9"),
        (lambda m: {}, "it holds nothing"),
    ],
)
def test_a_changed_memory_is_refused(known, stream, change, told):
    method = InterNeg(known, **PARAMETERS)
    score_stream(method, stream, 8)
    with pytest.raises(UserError, match=told):
        InterNeg(known, **PARAMETERS).restore(change(method.memory))


@pytest.mark.parametrize(
    ("parameters", "told"),
    [({"length": 0}, "length = 0"), ({"threshold": 1.5}, "threshold = 1.5"), ({"steps": 0}, "steps = 0")],
)
def test_parameters_out_of_range_are_refused(known, parameters, told):
    with pytest.raises(UserError, match=told):
        InterNeg(known, **parameters)


def test_classes_without_any_image_are_refused(known):
    with pytest.raises(UserError, match="3 classes and the mean images of 0"):
        InterNeg(replace(known, class_images=torch.zeros(3, WIDTH)))
    with pytest.raises(UserError, match="needs class_images in the reference"):
        InterNeg(replace(known, class_images=None))


def test_a_tokenizer_that_hides_words_is_refused(tower, stream, monkeypatch):
    hidden = tower.tokenize(["the same"] * len(PROMPTS))
    monkeypatch.setattr(tower, "tokenize", lambda texts: hidden)
    with pytest.raises(UserError, match="does not keep a word as one token"):
        invert(tower, stream[:2], 2, 0)


def test_scores_are_finite_at_a_large_logit_scale(known, stream):
    scores = score_stream(InterNeg(replace(known, logit_scale=500.0), **PARAMETERS), stream, 8)
    assert scores.isfinite().all() and all(math.isfinite(each) and 0 <= each <= 1 for each in scores.tolist())
