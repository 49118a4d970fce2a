"""Declares the files of a finished run, on which every reader relies: results.json, images.json, contents.json, scores.parquet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field, create_model, model_validator

from clip_ood.config.method_schema import Method
from clip_ood.detect.manifest import Predicts
from clip_ood.errors import UserError, brief
from clip_ood.files.records import Count, Record, Share, Text, Unfit, fitting, read_json, read_record, undamaged
from clip_ood.files.written_names import BYTES
from clip_ood.metrics.curves import OF_SCORES
from clip_ood.metrics.ood import MEAN
from clip_ood.runs.folder_records import HeldOut, Ranked
from clip_ood.runs.joint_records import Joint
from clip_ood.runs.stream_records import Stream

Number = Annotated[float, Field(ge=0)]  # of images or classes; a mean over seeds need not be an integer
Seeds = list[int]
Interval = Annotated[list[Share], Field(min_length=2, max_length=2)]
Metrics = create_model(
    "Metrics", __base__=Record, f1=(Share | None, None), **{name: (Share, ...) for name in OF_SCORES}
)


class Row(Metrics):
    """A detector's results on an OOD set, or on the mean over them."""

    detector: Text
    setting: Literal["standard", "full_spectrum"]
    ood: Text
    group: Text
    n_id: Number
    n_ood: Number
    intervals: dict[Text, Interval]
    std: dict[Text, float | None] = {}
    seeds: Count = 1


class Said(Record):
    """The reason why a detector is left out, or a note on it; `seeds` are given if it does not hold for all."""

    detector: Text
    seeds: Seeds = []


class Omitted(Said):
    reason: Text


class Note(Said):
    note: Text


class Bank(Record):
    images: Number
    per_class: Number | None


class Trained(Record):
    images: Number
    classes: Number
    fewest: Number
    most: Number


class PseudoLabels(Record):
    images: Annotated[float, Field(gt=0)]
    passed: Number
    accuracy: Share | None
    starved: Number = 0


class Head(Record):
    chosen: bool
    val_accuracy: Share
    val_nll: float | None
    lr: float
    weight_decay: float
    min_confidence: float = 0


class Split(Record):
    redrawn: bool
    train: Annotated[float, Field(gt=0)]
    val: Number
    test: Number


class Shared(Record):
    earlier: Text
    later: Text
    images: Count
    total: Count
    kind: Literal["exact", "near", "corrupted"] = "exact"


class Dropped(Record):
    """How many images of a set were taken out, since they are copies."""

    set: Text
    images: Count
    total: Count


class Decided(Record):
    """How many images were rejected and relabelled by data.decisions, and how many decisions are about images that are gone."""

    rejected: Count
    relabelled: Count
    gone: Count


class NegativeWords(Record):
    file: Text
    sha256: Text
    words: dict[Text, Count]


class Chosen(Record):
    n: Count
    expected: Share
    candidates: Count


class Calibration(Record):
    n: Count
    accept: Share
    needed: Count
    default: Text
    expected: Share | None
    thresholds: dict[Text, float] | None
    chosen: dict[Text, Chosen] = {}
    flagged: dict[Text, dict[Text, Count]] = {}  # by detector and OOD set, the images below the threshold


class Finished(Record):
    """The content of results.json that one seed and several have in common; keys with a default are not in all versions."""

    run: Text
    method: Literal[tuple(Method.model_fields)]
    encoder: Text
    seeds: Annotated[Seeds, Field(min_length=1)]
    split: Split | None = None
    bank: Bank
    pseudo_labels: PseudoLabels | None
    trained_on: Trained | None
    sweep: list[Head] | None
    negative_words: NegativeWords | None = None
    shared_images: list[Shared] = []
    suspects: Ranked | None = None
    held_out: HeldOut | None = None
    by_folds: list[Text] = []
    dropped: list[Dropped] = []
    decisions: Decided | None = None
    versions: dict[Text, Text] | None = None
    accuracy: Share | None
    knn_accuracy: Share | None
    omitted: list[Omitted]
    notes: list[Note]
    stream: Stream | None = None
    rows: list[Row]

    @model_validator(mode="after")
    def _is_a_table(self) -> Finished:
        """Checks that each setting has a row for each detector and OOD set, and for their mean."""
        for setting in {row.setting for row in self.rows}:
            cells = [(row.detector, row.ood) for row in self.rows if row.setting == setting]
            detectors, sets = ({cell[place] for cell in cells} for place in (0, 1))
            if MEAN not in sets or len(cells) != len(set(cells)) or len(cells) != len(detectors) * len(sets):
                raise UserError("holds no whole table: a row is missing in it, or stands there twice")
        return self

    @model_validator(mode="after")
    def _compares_plp(self) -> Finished:
        """Checks that the head of pseudo-label probing is compared with the texts."""
        told = getattr(self, "predictor", None)
        told = told if isinstance(told, list) else [told] if told else []
        if self.method == "plp" and not all({"head", "text"} <= each.accuracy.keys() for each in told):
            raise UserError("does not say how often the head and the texts are right")
        return self


class OfSeed(Finished):
    """The results.json of one seed."""

    predictor: Predicts | None = None
    calibration: Calibration | None = None
    joint: Joint | None = None

    @model_validator(mode="after")
    def _flags_images_there_are(self) -> OfSeed:
        sizes = {row.ood: row.n_ood for row in self.rows}
        for of_set in (self.calibration.flagged if self.calibration else {}).values():
            wrong = [name for name, count in of_set.items() if count > sizes.get(name, -1)]
            if wrong:
                raise UserError(f"says that more images of {wrong[0]!r} are flagged than the table has")
        return self


class OverSeeds(Finished):
    """The results.json of a run over several seeds."""

    predictor: list[Predicts] | None = None
    calibration: list[Calibration] | None = None
    accuracy_seeds: Count
    knn_accuracy_seeds: Count


class Part(Record):
    """The images of one part of a run."""

    images: Count
    digest: Text


def read_results(path: Path) -> dict[str, Any]:
    """Reads a results.json. Raises: Damaged for anything that no run writes, OSError."""
    with undamaged(path):
        content = _renamed(read_json(path))
        several = isinstance(content, dict) and "accuracy_seeds" in content
        return fitting(content, OverSeeds if several else OfSeed)


def _renamed(content: Any) -> Any:
    """The content with the best F1, which earlier versions called f1, under its name; f1 is then not known."""
    rows = content.get("rows") if isinstance(content, dict) else None
    for row in rows if isinstance(rows, list) else ():
        if isinstance(row, dict) and "f1" in row and "best_f1" not in row:
            row |= {"best_f1": row["f1"], "f1": None}
            for each in ("intervals", "std"):
                if isinstance(row.get(each), dict):
                    row[each] = {name: value for name, value in row[each].items() if name != "f1"}
    return content


def read_images(path: Path) -> dict[str, dict[str, Any]]:
    """Reads an images.json, by part. Raises as `read_results` does."""
    return read_record(path, dict[Text, Part])


def read_contents(path: Path) -> dict[str, str]:
    """Reads a contents.json, by part. Raises as `read_results` does."""
    return read_record(path, dict[Text, Text])


IMAGE = "image"  # not in files of earlier versions
ABOUT = {"set": pa.string(), "role": pa.string(), "path": pa.string(), "label": pa.string(), "prediction": pa.string()}


def read_scores(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads a scores.parquet, or some of the columns that say which image a row is for. Raises as `read_results` does."""
    with undamaged(path):
        try:
            with path.open("rb") as file:  # pyarrow cannot open a path that is not UTF-8
                found = pq.ParquetFile(file)
                odd = [BYTES] if BYTES in found.schema_arrow.names and "path" in (columns or ()) else []
                table = found.read(None if columns is None else [*columns, *odd])
        except (pa.ArrowException, ValueError) as error:
            raise Unfit(brief(error)) from error
        for name, kind in ABOUT.items():
            if columns is None or name in columns:
                _check_column(table, name, kind)
        for name, kind in ((BYTES, pa.binary()), (IMAGE, pa.int64())):
            if name in table.column_names:
                _check_column(table, name, kind)
        for name in (each for each in table.column_names if each not in (*ABOUT, BYTES, IMAGE)):
            values = table[name]
            if not pa.types.is_floating(values.type) or values.null_count or not pc.all(pc.is_finite(values)).as_py():
                raise Unfit(f"its column {name!r} holds other things than finite scores")
        if columns is None:
            pairs = set(zip(table["set"].to_pylist(), table["role"].to_pylist(), strict=True))
            roles = [role for _, role in pairs]
            if len(pairs) != len({name for name, _ in pairs}) or ("id" not in roles and "train" not in roles):
                raise Unfit("its sets have no one role each, or none has ID images")
            if max(roles.count("id"), roles.count("train")) > 1:
                raise Unfit("several of its sets are the ID test set")
        return table


def _check_column(table: pa.Table, name: str, kind: pa.DataType) -> None:
    if table.column_names.count(name) != 1:
        raise Unfit(f"it has no column {name!r}, or several")
    if table[name].type != kind:
        raise Unfit(f"its column {name!r} is of the type {table[name].type}, and must be {kind}")
    if name in ("set", "role", "path") and table[name].null_count:
        raise Unfit(f"its column {name!r} has rows without a value")
