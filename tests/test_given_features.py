"""Features of one's own: from arrays to the table and a detector folder that judges arrays, without an encoder."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.numpy import save_file
from safetensors.torch import save_file as torch_save

import detect
import eval as evaluation
import train
from clip_ood import load
from clip_ood.config.schema import ImageSet
from clip_ood.data.listing import list_images
from clip_ood.errors import ConfigError, UserError
from clip_ood.experiments.commands import features, review, serve
from clip_ood.experiments.serving import Asked, Serving

pytestmark = pytest.mark.slow

WIDTH, EACH = 12, 40


def drawn(seed: int, shift: float = 0.0, count: int = 3 * EACH) -> tuple[np.ndarray, np.ndarray]:
    """Features of three classes around three axes, `shift` away from them."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return (generator.normal(size=(count, WIDTH)) * 0.5 + 4 * np.eye(WIDTH)[labels] + shift).astype(np.float32), labels


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    root = tmp_path_factory.mktemp("arrays")
    for name, seed in (("train", 0), ("test", 1)):
        values, labels = drawn(seed)
        np.savez(root / f"{name}.npz", features=values, labels=labels)
    np.save(root / "far.npy", drawn(2, shift=3.0)[0])
    save_file({"features": drawn(3, shift=0.8)[0]}, root / "near.safetensors")
    return root


def config(root, name, method=None, **keys):
    content = {
        "data": {
            "root": str(root),
            "id": {"train": {"features": "train.npz"}, "test": {"features": "test.npz"}},
            "ood": {"far": {"features": "far.npy"}, "near": {"features": {"file": "near.safetensors"}}},
            "splits": {"val": 0.3, "test": 0.0},
        },
        "backbone": {"library": "given", "model": "my encoder"},
        "method": method or {"zero_shot": {}},
        "evaluation": {"figures": False, "report": False},
        "runs_root": f"{root}/runs",
        "features_root": f"{root}/features",
        "trainer": {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False},
    }
    path = root / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | keys))
    return str(path)


@pytest.fixture(scope="module")
def given(arrays):
    evaluation.main(["--config", config(arrays, "plain")])
    return arrays / "runs" / "plain"


def test_the_table_has_the_scores_that_plain_code_gives(given, arrays):
    results = json.loads((given / "results.json").read_text())
    assert results["encoder"] == "my encoder"
    rows = pq.read_table(given / "scores.parquet").to_pylist()
    bank = np.load(arrays / "train.npz")["features"]
    bank = bank / np.linalg.norm(bank, axis=1, keepdims=True)
    held_out = {row["path"] for row in rows if row["role"] == "val"}
    kept = bank[[f"train.npz/{number:06d}" not in held_out for number in range(len(bank))]]
    assert 0 < len(kept) < len(bank)
    for row in rows:
        if row["set"] == "far":
            one = np.load(arrays / "far.npy")[int(row["path"].rpartition("/")[2])]
            assert row["knn"] == pytest.approx(float((kept @ (one / np.linalg.norm(one))).max()), abs=1e-5)


@pytest.mark.parametrize("detectors", [None, ["mahalanobis", "vim"]])
def test_a_probe_learns_from_given_features_and_its_folder_judges_arrays(arrays, detectors, capsys):
    name = "probe" if detectors is None else "two"
    keys = {} if detectors is None else {"detectors": detectors}
    train.main(["--config", config(arrays, name, {"linear_probe": {"epochs": 40, "batch_size": 16}}, **keys)])
    next_step = capsys.readouterr().out.splitlines()[-1]
    assert next_step.endswith(f"in Python: clip_ood.load('{arrays / 'runs' / name}')(array)")
    predictor = load(arrays / "runs" / name)
    test, labels = (np.load(arrays / "test.npz")[key] for key in ("features", "labels"))
    accepted, far = predictor(test), predictor(torch.from_numpy(np.load(arrays / "far.npy")))
    assert np.mean([each.is_ood for each in accepted]) < 0.2 < 0.9 < np.mean([each.is_ood for each in far])
    right = [each.predicted_class == str(label) for each, label in zip(accepted, labels, strict=True)]
    assert predictor.by == ("knn" if detectors is None else "head")  # a folder without a bank has no neighbours to ask
    assert detectors is not None or np.mean(right) > 0.9
    scored = pq.read_table(arrays / "runs" / name / "scores.parquet").to_pylist()
    theirs = {row["path"]: row[predictor.column] for row in scored}
    assert [each.score for each in far] == pytest.approx([theirs[f"far.npy/{row:06d}"] for row in range(120)], rel=1e-5)
    copy = predictor(np.load(arrays / "train.npz")["features"][:60])
    assert any(each.copy_of == "train.npz/000000" for each in copy) or copy[0].copy_of is None
    assert sum(each.copy_of is not None for each in copy) > 20


def test_a_report_and_cross_fitting_take_them_and_a_review_has_nothing_to_show(arrays, capsys):
    keys = {"evaluation": {"cross_fit": 3, "report": True, "figures": False}}
    evaluation.main(["--config", config(arrays, "crossed", **keys), "--data.splits={val: 0, test: 0}"])
    assert (arrays / "runs/crossed/report.html").is_file() and (arrays / "runs/crossed/suspects.csv").is_file()
    assert "review" not in capsys.readouterr().out
    with pytest.raises(UserError, match="given its features, and no pictures to show"):
        review.main(["--run", str(arrays / "runs/crossed")])


def test_equal_rows_of_two_sets_are_told(arrays, capsys):
    values = np.load(arrays / "far.npy")
    values[:4] = np.load(arrays / "test.npz")["features"][:4]
    np.save(arrays / "leaky.npy", values)
    evaluation.main(["--config", config(arrays, "leaky"), "--data.ood={leaky: {features: leaky.npy}}"])
    (told,) = json.loads((arrays / "runs/leaky/results.json").read_text())["shared_images"]
    assert 4 in told.values(), told


@pytest.mark.parametrize(
    "wrong, told",
    [
        (np.zeros((3, 4, 5), np.float32), r"its array is \(3, 4, 5\) of float32; expected \(N, D\)"),
        (np.zeros((3, 4), np.int64), "of int64; expected"),
        (np.zeros((0, 4), np.float32), "at least one of each"),
        (np.array([[1.0, 2.0], [3.0, np.nan]]), "row 1 of its array has NaN"),
        (np.array([[1.0, 1e300]]), "row 0 of its array has NaN or infinite"),
        (np.array([[1.0, 2.0], [0.0, -1e-20]]), "the largest number of row 1 of its array is 1e-20, too near to 0"),
        (np.array([[0.0, 0.0], [3.0, -1e20]]), r"row 1 of its array is 1e\+20, too near .* multiply all features"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, wrong, told):
    np.save(tmp_path / "x.npy", wrong)
    with pytest.raises(ConfigError, match=told):
        listed(tmp_path, file="x.npy")


def listed(root, **source):
    return list_images("x", ImageSet(features=source), root, True, 0)


def test_labels_are_numbers_or_texts_one_a_row(tmp_path):
    values = np.ones((4, 3), np.float32)
    np.savez(tmp_path / "a.npz", embeddings=values, label=np.array(["b", "a", "b", "a"]))
    images = listed(tmp_path, file="a.npz")
    assert images.class_names == ("a", "b") and images.labels == (1, 0, 1, 0)
    np.savez(tmp_path / "b.npz", x=values, y=values, labels=np.arange(3))
    with pytest.raises(ConfigError, match=r"several arrays of floats, x, y: name the one that is meant \(array\)"):
        listed(tmp_path, file="b.npz")
    with pytest.raises(ConfigError, match="3 labels for 4 features"):
        listed(tmp_path, file="b.npz", array="x")
    with pytest.raises(ConfigError, match=r"no 'z' \(array\)"):
        listed(tmp_path, file="b.npz", array="z")
    with pytest.raises(ConfigError, match=r"its labels are \(4, 3\) of float32"):
        listed(tmp_path, file="b.npz", array="x", labels="y")
    np.save(tmp_path / "c.npy", values)
    np.save(tmp_path / "labels.npy", np.array([0, 1, -1, 1]))
    assert listed(tmp_path, file="c.npy", labels="labels.npy").labels == (0, 1, -1, 1)
    with pytest.raises(ConfigError, match="there is no file of labels"):
        listed(tmp_path, file="c.npy", labels="other.npy")
    np.save(tmp_path / "objects.npy", np.array([{}], object))
    with pytest.raises(ConfigError, match=r"objects\.npy: its array holds Python objects, which are not unpickled"):
        listed(tmp_path, file="objects.npy")
    with pytest.raises(
        ConfigError, match=r"c\.npy: its file of labels .*objects\.npy cannot be read: .* Python objects"
    ):
        listed(tmp_path, file="c.npy", labels="objects.npy")
    np.savez(tmp_path / "d.npz", features=values, label=np.array(["a", None, "b", "b"], object))
    with pytest.raises(ConfigError, match="its array label holds Python objects"):
        listed(tmp_path, file="d.npz")
    np.savez(tmp_path / "e.npz", features=values, label=np.array(["a", -1, "b", "b"]))  # which are texts, all of them
    with pytest.raises(ConfigError, match="it has the label '-1' as a text, which is no class"):
        listed(tmp_path, file="e.npz")


@pytest.mark.parametrize(
    "labels, told",
    [
        ([0.0, float("nan"), 1.0], r"the label 0\.0, a float; labels are whole numbers"),
        ([b"", b"a", None], "the label b'', a bytes"),
        ([[], [1], [2]], r"the label \[\], a list"),
        ([False, True, None], "the label False, a bool"),
    ],
)
def test_labels_of_other_kinds_are_refused(tmp_path, labels, told):
    pq.write_table(pa.table({"features": list(np.eye(3)), "label": labels}), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match=told):
        listed(tmp_path, file="a.parquet")


def test_parquet_and_safetensors_give_the_same(tmp_path):
    values, labels = drawn(5, count=6)
    pq.write_table(pa.table({"features": list(values), "label": labels, "other": ["x"] * 6}), tmp_path / "a.parquet")
    save_file({"features": values, "labels": labels}, tmp_path / "a.safetensors")
    np.savez(tmp_path / "a.npz", features=values.astype(np.float64), labels=labels)
    found = [listed(tmp_path, file=f"a.{kind}") for kind in ("parquet", "safetensors", "npz")]
    assert len({(each.labels, each.reader.open(3), each.identities().tobytes()) for each in found}) == 1
    np.savez(tmp_path / "b.npz", features=values.astype(">f8"), labels=labels.astype(">i8"))
    assert (listed(tmp_path, file="b.npz").reader.take(range(6)) == values).all()
    pq.write_table(pa.table({"features": [[1.0, 2.0], [3.0]]}), tmp_path / "ragged.parquet")
    with pytest.raises(ConfigError, match="have 1, 2 numbers; expected the same number"):
        listed(tmp_path, file="ragged.parquet")
    (tmp_path / "a.npz").write_bytes(b"PK\3\4 cut")
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as file, file.open("features.npy", "w") as array:
        head = {"descr": "<f4", "fortran_order": False, "shape": (10**11, 512)}
        np.lib.format.write_array_header_1_0(array, head)
    for name in ("a.npz", "huge.npz"):
        with pytest.raises(ConfigError, match="cannot be read"):
            listed(tmp_path, file=name)
    (tmp_path / "a.txt").write_text("1 2")
    with pytest.raises(ConfigError, match=r"features are read from \.npy, \.npz"):
        listed(tmp_path, file="a.txt")


@pytest.mark.parametrize(
    "change, told",
    [
        ({"data.ood": "{a: photos}"}, "nothing makes features of the images of data.ood.a"),
        ({"backbone": "{library: timm, model: resnet18}"}, "data.id.train is given as features"),
        ({"method": "{finetune: {}}"}, "tunes the encoder"),
        ({"evaluation.leaks": "near"}, "decodes images"),
        ({"backbone.image_size": "64"}, "backbone.image_size says how an encoder is made"),
        ({"data.ood": "{a: {features: wide.npy}}"}, "has features of 5 numbers, and data.id.train of 12"),
        ({"data.ood": "{a: {features: gone.npy}}"}, "there is no file of features"),
        ({"data.ood": "{a: {features: far.npy}, b: {features: ./far.npy}}"}, "name the same images"),
        ({"method": "{plp: {}}"}, "text encoder"),
        ({"detectors": "[{name: knn, layer: 3}]"}, "features were given"),
    ],
)
def test_what_does_not_go_with_given_features_is_refused(arrays, change, told):
    np.save(arrays / "wide.npy", np.ones((9, 5), np.float32))
    options = [f"--{key}={value}" for key, value in change.items()]
    with pytest.raises(UserError, match=told):
        train.main(["--config", config(arrays, "wrong", {"linear_probe": {"epochs": 1}}), *options])


@pytest.mark.parametrize("factor, told", [(1e5, "numbers beyond 65,504"), (1e-12, "no number that is not 0")])
def test_features_that_float16_does_not_hold_are_refused(arrays, factor, told):
    values = np.load(arrays / "far.npy")
    values[4] *= factor
    np.save(arrays / "scaled.npy", values)
    options = ["--data.ood={far: {features: scaled.npy}}", "--detectors=[knn]"]
    half = "--backbone={library: given, model: mine, precision: fp16}"
    with pytest.raises(
        ConfigError, match=rf"data\.ood\.far: row 4 .* {told} as float16.* set backbone\.precision=fp32"
    ):
        evaluation.main(["--config", config(arrays, "scaled"), *options, half])
    evaluation.main(["--config", config(arrays, "scaled"), *options])
    if factor > 1:
        evaluation.main(["--config", config(arrays, "half"), "--data.ood={far: {features: far.npy}}", options[1], half])
        with pytest.raises(UserError, match=r"Row 4 .* infinite numbers \(as float16\)"):
            load(arrays / "runs" / "half")(values)


def test_images_are_refused_and_wrong_arrays_named(given, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(UserError, match="features were given"):
        detect.main(["--run", str(given), str(tmp_path / "a.png")])
    assert not capsys.readouterr().out  # no header either
    with pytest.raises(UserError, match="features were given"):
        serve.main(["--run", str(given)])
    with pytest.raises(UserError, match="features were given"):
        detect.main(["--run", str(given), "--export", str(tmp_path / "a.onnx")])
    with pytest.raises(UserError, match="was given its features"):
        features.main(["export", "--run", str(given), "--out", str(tmp_path / "a.parquet")])
    with pytest.raises(UserError, match="encoded already"):
        evaluation.main(["--config", str(given.parents[1] / "plain.yaml"), "--plan"])
    with pytest.raises(UserError, match="features were given"):
        Serving(Asked(given), None).load()
    predictor = load(given)
    for wrong, told in (
        (np.ones((2, 5), np.float32), r"array \(N, 12\) of floats, and was given \(2, 5\)"),
        (np.ones((2, 12), int), "int64"),
        (np.full((2, 12), np.nan), "Row 0 of the features has NaN"),
        (["a.png"], "judges features"),
    ):
        with pytest.raises(UserError, match=told):
            predictor(wrong)


def test_arrays_and_frames_of_any_form_are_the_same_features(given, arrays):
    pd = pytest.importorskip("pandas")
    predictor, values = load(given), np.load(arrays / "far.npy")[:5]
    expected = [each.score for each in predictor(values)]
    assert [each.score for each in predictor(pd.DataFrame(values))] == expected
    for same in (values.astype(">f8"), values.astype(np.longdouble), values[::-1].copy()[::-1]):
        assert [each.score for each in predictor(same)] == expected


def test_columns_of_features_are_judged(given, arrays):
    predictor = load(given)
    values = np.load(arrays / "far.npy")[:5]
    judged = predictor({"features": values, "id": np.arange(5)})
    assert judged["is_ood"] == [each.is_ood for each in predictor(values)] and list(judged["id"]) == [0, 1, 2, 3, 4]
    for row in (values[0], values[0].tolist(), torch.from_numpy(values[0])):
        with pytest.raises(UserError, match="column features holds one row"):
            predictor({"features": row})
    assert all(predictor({"features": [float("nan")] * 2})["error"])  # as pandas has rows without features


def test_a_row_of_features_that_cannot_be_judged_leaves_the_others_as_they_are(given, arrays):
    predictor = load(given)
    values = np.load(arrays / "far.npy")[:3]
    expected = [each.score for each in predictor(values)]
    odd = [None, float("nan"), np.full(12, np.nan), [*[1.0] * 11, None], np.ones(5), np.ones(12, int), "a.png"]
    column = np.empty(10, object)  # an array of arrays, as Arrow gives a column of lists
    column[:] = [values[0], *odd, values[1].tolist(), torch.from_numpy(values[2])]
    judged = predictor({"features": column})
    assert [bool(error) for error in judged["error"]] == [False, *7 * [True], False, False]
    assert judged["score"][[0, 8, 9]] == pytest.approx(expected) and np.isnan(judged["score"][1:8]).all()
    assert judged["is_ood"][1:8] == 7 * [None]
    assert (
        judged["error"][3] == "it has NaN or infinite numbers (as float32)"
        and "(5,) of float64 is no list of 12" in judged["error"][5]
    )
    rows = np.empty(3, object)
    rows[:] = list(values)
    assert [each.score for each in predictor(rows)] == pytest.approx(expected)
    assert predictor({"features": []})["error"] == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_short_floats_of_safetensors_are_those_numbers(dtype, tmp_path):
    values = torch.tensor([[0.5, -2.0, 1.5]]).to(dtype)
    torch_save({"features": values, "scale": values.float()}, tmp_path / "a.safetensors")
    assert listed(tmp_path, file="a.safetensors").reader.take([0]).tolist() == [[0.5, -2.0, 1.5]]


def test_columns_that_are_no_lists_or_that_share_a_name_are_told(tmp_path):
    column = pa.array(np.eye(3).tolist(), pa.list_(pa.float64(), 3))
    tensors = pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(pa.float64(), [3]), column)
    pq.write_table(pa.table({"features": tensors}), tmp_path / "tensors.parquet")
    pq.write_table(pa.Table.from_arrays([column, column], ["features", "features"]), tmp_path / "twice.parquet")
    for name, told in (
        ("tensors", "fixed_shape_tensor.*no lists of floats"),
        ("twice", "several columns features: ren"),
    ):
        with pytest.raises(ConfigError, match=told):
            listed(tmp_path, file=f"{name}.parquet", array="features")


def test_only_the_chosen_arrays_of_a_file_are_read(tmp_path):
    values, _ = drawn(0)
    np.savez(tmp_path / "a.npz", features=values, objects=np.array([{}], dtype=object))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as file:
        file.writestr("notes/read me.txt", "no array")
    given = listed(tmp_path, file="a.npz")
    torch_save({"features": torch.from_numpy(values).bfloat16(), "step": torch.tensor(3)}, tmp_path / "a.safetensors")
    rounded = listed(tmp_path, file="a.safetensors")
    assert (given.reader.values == values).all()
    assert (rounded.reader.values == torch.from_numpy(values).bfloat16().float().numpy()).all()
    assert (given.reader.take(given.rows) == values).all() and (given.reader.take([5, 2]) == values[[5, 2]]).all()
    assert np.frombuffer(given.reader.open(5), np.float32) == pytest.approx(values[5], abs=0)


@pytest.mark.parametrize("name", ["empty.npy", "empty.npz", "array.npz", "several.npy", "empty.safetensors"])
def test_a_file_that_is_not_what_its_name_says_is_told(name, tmp_path):
    with (tmp_path / name).open("wb") as file:
        if name.startswith("array"):
            np.save(file, drawn(0)[0])
        elif name.startswith("several"):
            np.savez(file, features=drawn(0)[0])
    with pytest.raises(ConfigError, match=rf"{name}"):
        listed(tmp_path, file=name)
