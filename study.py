"""Makes a table or a figure from many runs; finished runs are not run again.

python study.py --config few_shot_demo.yaml
python study.py --config main_table.yaml --data.root=/data --trainer.devices=8
"""

from clip_ood.cli import command, run

main = command("study")

if __name__ == "__main__":
    run("study")
