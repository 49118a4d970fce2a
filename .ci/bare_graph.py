"""An exported graph, by runtimes that know nothing of this project, against what detect.py wrote of the same images.

python .ci/bare_graph.py model.onnx predictions.csv in an environment that has onnxruntime, openvino, numpy and pillow alone.
"""

import csv
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import openvino

graph, predictions = sys.argv[1:]
if foreign := [name for name in ("torch", "torchvision", "clip_ood", "open_clip") if importlib.util.find_spec(name)]:
    sys.exit(f"this environment is not bare: it has {', '.join(foreign)}")
sys.path.insert(0, str(Path(graph).parent))  # clip_ood_pixels.py lies beside the graph
from clip_ood_pixels import pixels  # noqa: E402

session = onnxruntime.InferenceSession(graph)
about = json.loads(session.get_modelmeta().custom_metadata_map["clip_ood"])
compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
outputs = {
    "onnxruntime": lambda image: session.run(about["outputs"], {"pixels": image}),
    "OpenVINO": lambda image: [compiled(image)[name] for name in about["outputs"]],
}
with open(predictions, encoding="utf-8", newline="") as file:
    rows = [row for row in csv.DictReader(file) if row["score"] and row["detector"] in about["detectors"]]
if not rows:
    sys.exit(f"{predictions} has no score of the detectors {', '.join(about['detectors'])}")
images = {row["path"]: pixels(row["path"], about) for row in rows}
for runtime, run in outputs.items():
    said = {path: dict(zip(about["outputs"], run(image), strict=True)) for path, image in images.items()}
    for detector in sorted({row["detector"] for row in rows}):
        own = [row for row in rows if row["detector"] == detector]
        expected = np.array([float(row["score"]) for row in own])
        found = np.array([said[row["path"]][f"score_{detector}"][0] for row in own])
        flagged = found < about["thresholds"][detector]
        difference = np.abs(found - expected).max() / np.ptp(expected)
        other = int((flagged != [row["is_ood"] == "true" for row in own]).sum())
        print(
            f"{runtime}, {detector}, {len(own)} images: scores within {difference:.1e} of their range, {other} other decisions"
        )
        if not difference < 1e-3 or other:
            sys.exit(f"{runtime} differs from detect.py")
