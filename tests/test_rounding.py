"""A covariance that is rounding noise: decided by the scale, the number and the dtype of rows, alike however many processes there are."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detector_data import REFERENCE, TEXT, TRAIN, WIDTH
from processes import together
from torch import Tensor

from clip_ood.detectors.gaussian import Moments, Rounding
from clip_ood.detectors.vim import Residual, ViM
from clip_ood.evaluation import DetectorSuite
from clip_ood.outputs import Outputs

NAMES = tuple("abcde")
GAUSSIANS = ["mahalanobis", "mahalanobis_pp", "rmd", "rmd_pp"]
SPECS = [
    "mahalanobis",
    {"name": "mahalanobis", "normalize": True, "as": "mahalanobis_pp"},
    "rmd",
    {"name": "rmd", "normalize": True, "as": "rmd_pp"},
    "mahalanobis_logits",
    "rmd_logits",
    "residual",
    "vim",
]
LABELS = torch.arange(60) % 5


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


CENTRES = 40 + torch.rand(5, WIDTH, generator=torch.Generator().manual_seed(4))


def outputs(features: Tensor, labels: Tensor = LABELS) -> Outputs:
    logits = features.float() @ REFERENCE.weight.T + REFERENCE.bias
    return Outputs(features, None, logits, labels, torch.arange(len(features)))


def told(rows: Outputs, processes: int) -> tuple[dict[str, str], dict[str, list[str]], dict[str, Tensor]]:
    """What is left out and why, the notes, and scores of the rows, of a fit by so many processes, which all say the same."""

    def work(exchange):
        suite = DetectorSuite(replace(REFERENCE, class_names=NAMES, text_embeddings=TEXT), SPECS)
        suite.update(rows.map(lambda value: value[exchange.rank :: processes]))
        suite.fit(exchange)
        return {each.detector: each.reason for each in suite.omitted}, suite.notes, suite.score(rows).scores

    found = together(processes, work)
    assert all(each[:2] == found[0][:2] for each in found)
    return found[0]


def one_direction(scale: float, classes: bool) -> Tensor:
    rows = (CENTRES[LABELS] if classes else CENTRES[:1].expand(60, -1)).clone()
    rows[:, 2] += scale * random(60)
    return rows


NOTHING_VARIES = {
    "the same image all over a class": outputs(CENTRES[LABELS]),
    "one image a class": outputs(CENTRES, torch.arange(5)),
    "two classes of one image": outputs(CENTRES[:2], torch.arange(2)),
    "one image all over": outputs(CENTRES[:1].expand(60, -1).clone()),
    "bf16 rounds what differs": outputs((CENTRES[LABELS] + 1e-3 * random(60, WIDTH)).bfloat16()),
    "fp16 rounds what differs": outputs((CENTRES[LABELS] + 1e-3 * random(60, WIDTH)).half()),
    "fp32 rounds what differs": outputs((CENTRES[LABELS].double() * (1 + 1e-8 * random(60, WIDTH))).float()),
    "an encoder in other batches": outputs((CENTRES[LABELS].double() * (1 + 5e-7 * random(60, WIDTH))).float()),
    "zeros": outputs(torch.zeros(60, WIDTH)),
    "tiny and the same": outputs(1e-20 * CENTRES[LABELS].double()),
}


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("case", NOTHING_VARIES)
def test_rounding_is_never_taken_for_a_covariance(case, processes):
    omitted, _, _ = told(NOTHING_VARIES[case], processes)
    assert {name for name, why in omitted.items() if "the covariance is zero" in why} >= {*GAUSSIANS}


@pytest.mark.parametrize("classes", [False, True])
@pytest.mark.parametrize("scale", [1e-3, 1.0])
def test_what_varies_in_one_direction_alone_has_rank_one_in_any_number_of_processes(scale, classes):
    rows = outputs(one_direction(scale, classes))
    alone, notes, scores = told(rows, 1)
    assert not alone
    for processes in (2, 3):
        again, others, same = told(rows, processes)
        assert again == alone and others == notes
        for name in ("mahalanobis", "rmd", "mahalanobis_logits", "rmd_logits"):
            torch.testing.assert_close(same[name], scores[name], rtol=1e-2, atol=1e-2 * float(scores[name].std()))


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_large_mean_leaves_the_directions_that_vary(processes):
    omitted, _, scores = told(outputs(1e4 + random(200, WIDTH), torch.arange(200) % 5), processes)
    assert not omitted
    near = told(outputs(random(200, WIDTH), torch.arange(200) % 5), 1)[2]
    torch.testing.assert_close(scores["mahalanobis"], near["mahalanobis"], rtol=1e-2, atol=1e-2)
    spread = told(outputs(1e4 + random(200, WIDTH), torch.arange(200) % 5), 1)[2]["mahalanobis_pp"]
    torch.testing.assert_close(scores["mahalanobis_pp"], spread, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_a_direction_that_no_feature_has_is_left_out_in_any_dtype(dtype):
    normed = torch.nn.functional.layer_norm(random(200, WIDTH).double(), (WIDTH,))  # Σ_j x_j = 0
    rows = outputs(normed.to(dtype), torch.arange(200) % 5)
    omitted, notes, scores = told(rows, 1)
    assert not omitted and "mahalanobis" not in notes
    exact = told(outputs(normed, torch.arange(200) % 5), 1)[2]
    torch.testing.assert_close(scores["mahalanobis"], exact["mahalanobis"], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ["rmd", "rmd_pp", "rmd_logits"])
def test_classes_that_hold_the_same_images_have_no_relative_distance(name):
    half = random(30, WIDTH) + 7
    for processes in (1, 2, 3):
        omitted, _, _ = told(outputs(torch.cat([half, half]), torch.arange(60) // 30), processes)
        assert "all classes have the same mean" in omitted[name]
        assert "mahalanobis" not in omitted


def test_features_that_fill_less_than_their_width_up_to_rounding_have_that_rank():
    spanned = (random(200, 4) @ random(4, WIDTH)).half()
    residual = Residual(REFERENCE)
    residual.update(outputs(spanned, torch.arange(200) % 5))
    residual.fit()
    assert "half the rank 5 of" in residual.notes[0]  # 4, and the way to the origin
    with pytest.raises(ValueError, match="dim = 5, expected less than 5, the rank"):
        again = Residual(REFERENCE, dim=5)
        again.update(outputs(spanned, torch.arange(200) % 5))
        again.fit()


def test_vim_of_features_at_the_head_s_origin_is_left_out():
    weight, bias = REFERENCE.weight.double(), REFERENCE.bias.double()
    origin = (-torch.linalg.pinv(weight) @ bias).expand(60, -1)
    vim = ViM(replace(REFERENCE, weight=weight, bias=bias))
    vim.update(outputs(origin + 1e-17 * random(60, WIDTH)))
    with pytest.raises(ValueError, match="nothing but rounding lies outside the principal space"):
        vim.fit()


def test_equal_weights_up_to_rounding_have_no_boundary():
    from clip_ood.detectors.fdbd import FDBD

    weight = REFERENCE.weight.clone()
    weight[1] = weight[0] * (1 + torch.finfo(torch.float32).eps)
    same = weight.clone()
    same[1] = weight[0]
    scores = []
    for each in (weight, same):
        detector = FDBD(replace(REFERENCE, weight=each))
        detector.update(TRAIN)
        detector.fit()
        scores.append(detector.score(TRAIN))
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)


def test_rounding_grows_with_scale_rows_and_the_coarsest_dtype_of_all_processes():
    def rounding(rows: Tensor) -> Rounding:
        moments = Moments("features")
        moments.update(outputs(rows, torch.zeros(len(rows), dtype=torch.int64)))
        return moments.rounding()

    rows = random(50, WIDTH).double()
    assert rounding(10 * rows).direction == pytest.approx(100 * rounding(rows).direction)
    assert rounding(rows.half()).all > 1e6 * rounding(rows.float()).all > rounding(rows.float()).direction

    few = rows.half().double()
    few[-1] = rows[-1]  # one row that no half-precision value equals, behind many
    assert rounding(few).all < 1e-6 * rounding(rows.half()).all

    def joined(exchange) -> float:
        moments = Moments("features")
        share = rows[exchange.rank :: 2]
        moments.update(outputs(share.half() if exchange.rank else share, torch.zeros(len(share), dtype=torch.int64)))
        moments.join(exchange)
        return moments.rounding().direction

    assert len(set(together(2, joined))) == 1
