"""Can the detectors be fooled? OOD images are perturbed towards ID features, and every detector scores them again.

python attack.py --config adversarial_demo.yaml
python attack.py --config adversarial_vitg_cifar100.yaml --data.root=/data --trainer.devices=8
"""

from clip_ood.cli import command, run

main = command("attack")

if __name__ == "__main__":
    run("attack")
