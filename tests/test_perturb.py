"""The attack on a tiny encoder: smoothness, budgets, valid pixels, progress, seeds."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import open_clip
import pytest
import tiny_clip
import torch
from torch.nn.functional import cosine_similarity

from clip_ood.adversarial import Attack, Budget, perturb, roughness, total_variation
from clip_ood.adversarial.perturb import quantised, start
from clip_ood.adversarial.smoothness import add_roughness_gradient

SEEDS = [3, 5, 8, 13]


@pytest.fixture(autouse=True)
def alone():
    """One thread: images of 32 pixels are too small for more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tower():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**tiny_clip.CLIP)
    return model.visual.eval().requires_grad_(False)


@pytest.fixture
def images():
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def matching(tower):
    """−cos(g(x), g(x')) for four target images x'."""
    with torch.no_grad():
        targets = tower(torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)))
    return lambda pixels: -cosine_similarity(tower(pixels), targets)


def test_the_gradient_of_the_roughness_is_a_finite_difference():
    p = torch.rand(2, 3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found, eps = torch.ones_like(p), 1e-6
    add_roughness_gradient(found, p, 3.0)
    for place in np.ndindex(*p.shape):
        step = torch.zeros_like(p)
        step[place] = eps
        difference = (roughness(p + step) - roughness(p - step)).sum() / (2 * eps)
        assert found[place].item() == pytest.approx(1 + 3 * difference.item(), rel=1e-6, abs=1e-9)


def test_roughness_and_variation_are_those_of_a_loop():
    p = torch.rand(1, 3, 4, 5, dtype=torch.float64)
    squares_x = [(p[0, c, i, j + 1] - p[0, c, i, j]) ** 2 for c in range(3) for i in range(4) for j in range(4)]
    squares_y = [(p[0, c, i + 1, j] - p[0, c, i, j]) ** 2 for c in range(3) for i in range(3) for j in range(5)]
    assert roughness(p).item() == pytest.approx(sum(squares_x) / len(squares_x) + sum(squares_y) / len(squares_y))
    assert total_variation(p).item() == pytest.approx(sum(float(x) ** 0.5 for x in squares_x + squares_y))


def test_a_very_smooth_perturbation_becomes_constant(images, matching):
    images = 0.25 + images / 2  # far from the ends of the range, where clipping is rough
    attack = Attack(smoothness=1e12)  # else the paper's
    after = perturb(matching, images, attack, SEEDS)
    assert (total_variation(start(images, attack, SEEDS) - images) / total_variation(after - images)).min() >= 1000


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_cosines_rise_with_the_steps(images, matching, layout):
    cosines = {}
    matching = lambda pixels, plain=matching: plain(pixels.to(memory_format=layout))  # noqa: E731  as of convolutions
    attack = Attack(steps=50, lr=1e-2, smoothness=0.0)
    perturb(matching, images, attack, SEEDS, lambda step, pixels: cosines.update({step: -matching(pixels)}))
    assert sorted(cosines) == list(range(51))
    assert (cosines[50] > cosines[10]).all() and (cosines[10] > cosines[0]).all()


@pytest.mark.parametrize("sign", [False, True])
@pytest.mark.parametrize("budget", [None, Budget("linf", 0.02), Budget("l2", 0.5)])
def test_pixels_are_valid_and_within_the_budget_after_every_step(images, matching, budget, sign):
    def check(step, pixels):
        assert pixels.min() >= 0 and pixels.max() <= 1
        p = pixels - images
        if budget is not None:
            size = p.abs().amax(dim=(1, 2, 3)) if budget.norm == "linf" else p.flatten(1).norm(dim=1)
            assert (size <= budget.epsilon * (1 + 1e-5)).all()

    images[0] = images[0].round()  # pixels at both ends
    attack = Attack(steps=8, lr=0.02, smoothness=0.0, sign=sign, budget=budget)
    after = perturb(matching, images, attack, SEEDS, check)
    assert ((after - images).abs().amax(dim=(1, 2, 3)) > 1e-3).all()


def test_the_same_seeds_give_the_same_images_in_any_batch(images, tower):
    with torch.no_grad():
        targets = tower(images.flip(0))

    def attacked(rows):
        loss = lambda pixels: -cosine_similarity(tower(pixels), targets[rows])  # noqa: E731
        return perturb(loss, images[rows], Attack(steps=5), SEEDS[rows])

    whole = attacked(slice(0, 4))
    assert torch.equal(whole, attacked(slice(0, 4)))
    torch.testing.assert_close(torch.cat([attacked(slice(0, 2)), attacked(slice(2, 4))]), whole, rtol=0, atol=1e-4)


def test_weights_keep_no_gradient(images, matching, tower):
    perturb(matching, images, Attack(steps=2), SEEDS)
    assert all(weight.grad is None for weight in tower.parameters())


def kept_of_weights(tower, images, targets):
    """Whether a forward pass keeps what weights alone need for their gradients: what LayerNorms and GELUs put out."""
    made, kept = {}, set()
    inner = [
        module for module in tower.transformer.modules() if isinstance(module, (torch.nn.LayerNorm, torch.nn.GELU))
    ]
    hooks = [each.register_forward_hook(lambda _, __, out: made.update({out.data_ptr(): out})) for each in inner]
    with torch.autograd.graph.saved_tensors_hooks(lambda each: kept.add(each.data_ptr()) or each, lambda each: each):
        loss = cosine_similarity(tower(images.clone().requires_grad_()), targets)
    for hook in hooks:
        hook.remove()
    assert loss.requires_grad and len(made) == 6  # all alive until here: no address is used twice
    return bool(kept.intersection(made))


def test_no_activations_are_kept_for_the_weights(images, tower):
    with torch.no_grad():
        targets = tower(images.flip(0))
    assert not kept_of_weights(tower, images, targets)
    assert kept_of_weights(deepcopy(tower).requires_grad_(True), images, targets)


def test_it_works_in_inference_mode(images, matching):
    with torch.inference_mode():
        assert perturb(matching, images.clone(), Attack(steps=2), SEEDS).shape == images.shape


def test_eight_bit_pixels_are_whole_numbers(images):
    values = 255 * quantised(images)
    torch.testing.assert_close(values, values.round())
    assert (quantised(images) - images).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("norm, epsilon, message", [("linf", 0.0, "allows no perturbation"), ("l1", 1.0, "linf or l2")])
def test_wrong_budgets(norm, epsilon, message):
    with pytest.raises(ValueError, match=message):
        Budget(norm, epsilon)


def test_a_loss_without_gradient_is_an_error(images):
    with pytest.raises(ValueError, match="no gradient with respect to the pixels"):
        perturb(lambda pixels: pixels.detach().mean(dim=(1, 2, 3)), images, Attack(steps=1), SEEDS)
    with pytest.raises(ValueError, match="not finite"):
        perturb(lambda pixels: pixels.mean(dim=(1, 2, 3)) / 0, images, Attack(steps=1), SEEDS)
