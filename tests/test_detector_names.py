"""Detectors by name: which are built by default, which are omitted with a reason, and what a config gets wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from detector_data import ALL, CLASSES, REFERENCE, TEST, TRAIN, close
from torch import Tensor

from clip_ood.config.schema import Method
from clip_ood.detectors import DETECTORS, Detector, Omitted, build_detectors, read_specs
from clip_ood.detectors.names import NOT_BY_DEFAULT, STREAM_METHODS
from clip_ood.evaluation import DetectorSuite
from clip_ood.outputs import Outputs, Reference


class Mine(Detector):
    requires = ("features",)

    def __init__(self, reference: Reference | None = None, *, sign: float = 1.0) -> None:
        super().__init__(reference)
        self.sign = sign

    def _score(self, rows: Outputs) -> Tensor:
        return self.sign * rows.features.norm(dim=1)


def test_all_are_the_default():
    detectors, omitted = build_detectors(None, REFERENCE, ALL)
    assert sorted(detectors) == sorted({*DETECTORS, "mahalanobis_pp"} - {*NOT_BY_DEFAULT, "gaussian_pp"})
    assert detectors["mahalanobis_pp"].beta == 1
    assert omitted == []


def test_what_cannot_run_is_omitted_with_its_reason():
    detectors, omitted = build_detectors(None, Reference(), {"features"})
    assert list(detectors) == ["knn"]
    reasons = {left.detector: left.reason for left in omitted}
    assert reasons["msp"] == "needs logits: this run trains no head"
    assert reasons["rmd"] == "needs class labels of the ID training images"
    assert reasons["rmd_logits"] == f"{reasons['msp']}; {reasons['rmd']}"
    assert "needs text embeddings" in reasons["mcm"]
    assert build_detectors(["msp"], Reference(), set())[1] == [Omitted("msp", reasons["msp"])]


def test_what_cannot_be_fitted_is_omitted_with_its_reason():
    wrong = (TRAIN.logits.argmax(dim=1) + 1) % CLASSES
    suite = DetectorSuite(REFERENCE, ["she", {"name": "knn", "k": 1000}, "msp"])
    suite.update(replace(TRAIN, labels=wrong))
    suite.fit()
    assert list(suite.score(TEST).scores) == list(suite.detectors) == ["msp"]
    reasons = {left.detector: left.reason for left in suite.omitted}
    assert reasons["she"].startswith("the head predicts no ID training image")
    assert reasons["knn"].startswith(f"k = 1000, but the bank has {len(wrong)} rows")
    suite = DetectorSuite(REFERENCE, ["she"])
    suite.update(replace(TRAIN, labels=wrong))
    with pytest.raises(ValueError, match=r"None of the detectors.*she: the head predicts no"):
        suite.fit()


def test_a_name_asked_for_twice_gets_columns_of_its_own():
    specs = ["knn", {"name": "knn", "k": 50}, {"name": "knn", "k": 5, "kth": True}, {"name": "mcm", "tau": 0.1}]
    detectors, _ = build_detectors([*specs, {"name": "knn", "k": 9, "as": "nine"}], REFERENCE, ALL)
    assert list(detectors) == ["knn", "knn_k50", "knn_k5_kth", "mcm", "nine"]
    assert (detectors["knn_k50"].k, detectors["knn_k5_kth"].kth, detectors["mcm"].tau) == (50, True, 0.1)
    with pytest.raises(ValueError, match="column 'knn' is asked for 2 times"):
        read_specs(["knn", "knn"])
    with pytest.raises(ValueError, match="the list is empty; name some, or leave the key out"):
        read_specs([])


def test_a_class_of_the_user_is_named_by_its_path():
    path = f"{__name__}.Mine"
    detectors, _ = build_detectors([path, {"name": path, "sign": -1.0}], Reference(), ALL)
    assert list(detectors) == ["Mine", "Mine_sign-1.0"]
    close(detectors["Mine_sign-1.0"].score(TEST), -TEST.features.double().norm(dim=1))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("knm", "unknown name 'knm'; nearest: knn"),
        ("no_such_package.Score", "no module 'no_such_package'"),
        ("torch.nn.Linear", "expected a subclass of clip_ood.detectors.Detector"),
        ("torch.nn.NoSuchThing", "expected a subclass of clip_ood.detectors.Detector"),
        ({"name": "knn", "K": 3}, "knn: unknown parameter 'K', expected k, kth"),
        ({"name": "max_logit", "k": 3}, "max_logit: unknown parameter 'k', expected none"),
        ({"name": "knn", "k": 0}, "knn: k = 0"),
        ({"name": "knn", "k": 1.5}, "knn: k = 1.5, expected a whole number from 1 on, or a share"),
        ({"name": "knn", "k": True}, "knn: k = True, expected a number"),
        ({"name": "nnguide", "k": 0.5}, "nnguide: k = 0.5, expected a whole number"),
        ({"k": 3}, "expected a name or a mapping with the key 'name'"),
        (7, "expected a name or a mapping"),
    ],
)
def test_what_a_config_gets_wrong_is_named(spec, message):
    with pytest.raises(ValueError, match=message):
        build_detectors([spec], REFERENCE, ALL)


def test_names_do_not_import_torch():
    code = (
        "import sys; from clip_ood.detectors.names import DETECTORS, read_specs; read_specs(None);"
        "assert 'torch' not in sys.modules; from clip_ood.detectors import Detector; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_page_says_what_every_detector_and_method_needs():
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text()
    methods = {f"method.{name}" for name in Method.model_fields} - {"method.zero_shot"}
    assert {name for name in [*DETECTORS, *STREAM_METHODS, *methods] if f"`{name}`" not in page} == set()
