"""Conducts one experiment: images → features → training → table.

python train.py --config demo.yaml
python train.py --config plp_vitg.yaml --trainer.devices=8 --data.root=/data
"""

from clip_ood.cli import command, run

main = command("train")

if __name__ == "__main__":
    run("train")
