"""Learned attacks beside scripts at their best step size and beside open-loop schedules (docs/rp-pgd.md, Results).

    python benchmarks/learned_attacks.py --run runs/attack_3 runs/attack_5 --victim victim.safetensors

Runs of `paper: ppo` on RP-PGD's environments, each at its own number of steps and eps, against the packaged victim of
scenes and the given ones, from the clean image, on scenes of the split test; step sizes are those of the lowest mIoU on
scenes of val. Each run and victim is written as it is done, and not computed again. Writes results/learned_attacks.json
beside this and prints the tables.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from attack_grid import SHARES, attacked_counts, pools
from segarena.agents.rp_pgd.learned_attack import LearnedAttack
from segarena.attacks.budget import Epsilon
from segarena.attacks.methods import ATTACKS
from segarena.attacks.victims import PACKAGED, feature_layer_of, load_victim
from segarena.common.files import replacing
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.robustness_metrics import image_miou
from segarena.evaluation.statistics import bootstrap_interval

RESULT = Path(__file__).parent / "results" / "learned_attacks.json"
SCRIPTS = ("bim", "segpgd", "cospgd", "js", "rp_pgd_pp", "rp_global")


def attacked_miou(attack, victim, pool, **arguments):
    """mIoU of each image after an attack, [N]."""
    return image_miou(attacked_counts(attack, victim, pool, **arguments))


def compared(folder, path, images):
    """mIoU of each test image by the attack: learned, open loop, scripts as given and tuned."""
    (victim, classes), learned = load_victim(path), LearnedAttack.open(folder)
    val, test = pools(classes, images)
    eps, steps, layer = Epsilon.parse(learned.experiment.settings["eps"]), learned.steps(), feature_layer_of(victim)
    common = {"eps": eps, "feature_layer": layer}
    values = {"learned": attacked_miou(learned, victim, test, **common)}
    if (Path(folder) / "open_loop").is_dir():
        control = LearnedAttack.open(Path(folder) / "open_loop")
        values["open loop"] = attacked_miou(control, victim, test, **common)
    for name in SCRIPTS:
        attack = ATTACKS[name]
        script = {"eps": eps, "steps": steps, "random_start": False}
        script |= {"feature_layer": layer} if attack.regional else {}
        sizes = [share * eps.value for share in SHARES[steps]]
        on_val = [attacked_miou(attack, victim, val, step_size=size, **script).mean() for size in sizes]
        best = sizes[int(np.argmin(on_val))]
        values[attack.title] = attacked_miou(attack, victim, test, **script)
        values[f"{attack.title}, tuned"] = attacked_miou(attack, victim, test, step_size=best, **script)
    return {name: [round(float(one), 4) for one in value] for name, value in values.items()}


def table(found):
    """mIoU by attack, and the learned attack and the open loop less each, paired."""
    points = {name: 100 * np.array(value) for name, value in found.items()}
    lines = ["| attack | mIoU (%) | learned less it | open loop less it |", "|---|---|---|---|"]
    for name, value in points.items():
        less = [
            "–" if own == name or own not in points
            else "{:+.1f} [{:.1f}, {:.1f}]".format(*bootstrap_interval(points[own] - value))
            for own in ("learned", "open loop")
        ]  # fmt: skip
        lines.append(f"| {name} | {value.mean():.1f} | {' | '.join(less)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", nargs="+", required=True, metavar="FOLDER", help="trained to the end")
    parser.add_argument("--victim", nargs="*", default=[], metavar="FILE", help="besides the packaged one")
    parser.add_argument("--images", type=int, default=200, help="test scenes; half as many of val")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    known = json.loads(args.out.read_text()) if args.out.exists() else {"machine": describe_machine(), "miou": {}}
    for folder in args.run:
        for path in (PACKAGED["scenes"], *args.victim):
            name = f"{Path(folder).name}, {'packaged' if path == PACKAGED['scenes'] else path}"
            if name not in known["miou"]:
                known["miou"][name] = compared(folder, path, args.images)
                with replacing(args.out) as unfinished:
                    unfinished.write_text(json.dumps(known))
            print(f"\n{name}\n\n{table(known['miou'][name])}", flush=True)


if __name__ == "__main__":
    main()
