"""Evaluates an encoder as it is, or a run's head, without training; or compares several runs side by side.

python eval.py --config zero_shot_demo.yaml
python eval.py --run runs/demo --detectors='[knn, {name: knn, k: 10}, msp]'
python eval.py --compare runs/demo runs/linear_probe_demo          (or one detector of each: runs/demo:msp)
python eval.py --compare runs/demo runs/linear_probe_demo --html comparison.html
python eval.py --report runs/demo
"""

from clip_ood.cli import command, run

main = command("eval")

if __name__ == "__main__":
    run("eval")
