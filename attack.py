"""Can the detectors be fooled? OOD images moved onto ID features, and what every score says of them.

python attack.py --config adversarial_demo.yaml
python attack.py --config adversarial_vitg_cifar100.yaml --data.root=/data --trainer.devices=8
"""

from clip_ood.cli import command, run

main = command("attack")

if __name__ == "__main__":
    run("attack")
