"""A finished run judges new images: which of them are out-of-distribution?

python detect.py --run runs/demo photos/ more/a.jpg
python detect.py --run runs/demo photos/ --out predictions.csv --copy-ood odd/ --accept 0.9
python detect.py --run runs/demo photos/ --out predictions.csv --fdr 0.1
find photos -name '*.jpg' | python detect.py --run runs/demo - --format jsonl
python detect.py --run runs/demo --export model.onnx
"""

from clip_ood.cli import command, run

main = command("detect")

if __name__ == "__main__":
    run("detect")
