"""Attacks at equal steps on victims of phantom scenes (docs/rp-pgd.md, Results).

    python benchmarks/scene_attacks.py --victim standard=runs/none/segmenter/victim.safetensors \
        --victim robust=runs/sat/segmenter/victim.safetensors

The victims see scenes of the split test, on which nothing was chosen; tuned step sizes are those of the lowest mIoU on
scenes of val. Each victim and eps is written as it is done, and not computed again: a killed run goes on. Writes
results/scene_attacks.json and .png beside this and prints the tables.
"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from segarena.attacks.budget import Epsilon
from segarena.attacks.methods import ATTACKS
from segarena.attacks.victims import feature_layer_of, load_victim
from segarena.common.files import replacing
from segarena.common.overlap import class_counts
from segarena.datasets.images import IGNORED
from segarena.datasets.scenes.images import PhantomScenes, SceneDataConfig, load_scenes
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.robustness_metrics import Counts, image_miou, metrics
from segarena.evaluation.statistics import bootstrap_interval
from segarena.segmenters.inference import segment

RESULT = Path(__file__).parent / "results" / "scene_attacks.json"
STEPS = (1, 3, 5, 10, 20)
SHARES = {1: (1.0,), 3: (1 / 3, 0.5, 0.75, 1.0), 5: (0.2, 1 / 3, 0.5, 0.75), 10: (0.1, 0.2, 1 / 3, 0.5)}
"""Step sizes that are tried, as shares of the radius, by the number of steps."""
NAMES = [name for name, attack in ATTACKS.items() if not attack.single]
BATCH = 16


def attacked_counts(victim, pool, name, eps, steps, share, *, random_start):
    """Pixels of each class in each image after an attack."""
    attack, found = ATTACKS[name], []
    arguments = {"eps": eps, "steps": steps, "random_start": random_start, "ignore_index": IGNORED}
    if attack.regional:
        arguments["feature_layer"] = feature_layer_of(victim)
    if share is not None:
        arguments["step_size"] = share * eps.value
    generator = torch.Generator().manual_seed(0)
    for first in range(0, len(pool), BATCH):
        images, labels = pool.images[first : first + BATCH].float() / 255, pool.labels[first : first + BATCH].long()
        moved = attack(victim, images, labels, generator=generator, **arguments)
        with torch.inference_mode():
            predicted = victim(moved).argmax(dim=1)
        found.append(class_counts(predicted, labels, len(pool.classes), IGNORED))
    return Counts(*(torch.cat(parts).numpy() for parts in zip(*found, strict=True)))


def summary(counts, rival):
    """mIoU of all images; of each, the mean with its interval, and that of the difference to the rival's."""
    values = image_miou(counts)
    row = {"miou": metrics(counts).miou, "image_miou": list(bootstrap_interval(values))}
    if rival is not None:
        row["minus_pgd"] = list(bootstrap_interval(values - image_miou(rival)))
    return row


def grid(victim, test, val, eps, *, tune):
    """Rows by attack, steps and way (given, random start, tuned step size)."""
    rows, rivals = [], {}
    for name in ["bim", *(one for one in NAMES if one not in ("bim", "pgd"))]:
        for steps in STEPS:
            ways = {"given": (None, False), "random": (None, True)}
            if tune and steps in SHARES:
                tried = {
                    share: metrics(attacked_counts(victim, val, name, eps, steps, share, random_start=False)).miou
                    for share in SHARES[steps]
                }
                ways["tuned"] = (min(tried, key=tried.get), False)
            for way, (share, random_start) in ways.items():
                counts = attacked_counts(victim, test, name, eps, steps, share, random_start=random_start)
                row = {"attack": name, "steps": steps, "way": way, "step_share": share}
                rows.append(row | summary(counts, rivals.get((steps, way))))
                rivals.setdefault((steps, way), counts)
        print(f"{eps}: {name}", flush=True)
    return rows


def table_of(rows):
    """Markdown: mIoU by steps at the given and the tuned step size, and the difference to BIM image by image."""
    ways = ("given", "tuned") if any(row["way"] == "tuned" for row in rows) else ("given", "random")
    title = {"given": "N = {}", "tuned": "tuned, N = {}", "random": "random start, N = {}"}
    found = {(row["attack"], row["way"], row["steps"]): row for row in rows}
    columns = [(way, steps) for way in ways for steps in (STEPS if way == "given" else STEPS[1:-1])]
    lines = [["attack", *(title[way].format(steps) for way, steps in columns), "N = 3 less BIM", "N = 20 less BIM"]]
    lines.append(["---"] * len(lines[0]))
    for name in dict.fromkeys(row["attack"] for row in rows):
        shown = "BIM, PGD from x" if name == "bim" else ATTACKS[name].title
        cells = [f"{100 * found[name, way, steps]['miou']:.1f}" for way, steps in columns]
        for steps in (3, 20):
            less = found[name, "given", steps].get("minus_pgd")
            cells.append("–" if less is None else "{:+.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in less[:3])))
        lines.append([shown, *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def picture(results, path):
    """mIoU against steps, one panel for each victim, at the first eps."""
    figure, axes = plt.subplots(1, len(results), figsize=(5.5 * len(results), 4.2), sharey=True, squeeze=False)
    for axis, (victim, by_eps) in zip(axes[0], results.items(), strict=True):
        eps, rows = next((eps, rows) for eps, rows in by_eps.items() if eps != "clean")
        for number, name in enumerate(dict.fromkeys(row["attack"] for row in rows)):
            mine = [row for row in rows if row["attack"] == name and row["way"] == "given"]
            title = "BIM = PGD" if name == "bim" else ATTACKS[name].title
            style = "-o" if name.startswith("rp") else "--."
            shown = [100 * row["miou"] for row in mine]
            axis.plot([row["steps"] for row in mine], shown, style, label=title, color=f"C{number % 10}")
        axis.set(title=f"{victim}, eps {eps}", xlabel="gradient steps", xscale="log", xticks=STEPS)
        axis.set_xticklabels(STEPS)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mIoU (%), lower: stronger attack")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--victim", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--eps", nargs="+", default=["8/255", "0.03"], help="the first one with tuned step sizes, too")
    parser.add_argument("--images", type=int, default=48, help="test scenes; half as many to tune on")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    data = SceneDataConfig(size=65, phantom_scenes=PhantomScenes(val=args.images // 2, test=args.images))
    val, test = (load_scenes(data, split).pool() for split in ("val", "test"))
    kept = json.loads(args.out.read_text()) if args.out.exists() else {"results": {}}
    results = kept["results"]
    for name, path in (one.split("=", 1) for one in args.victim):
        victim, _ = load_victim(path)
        mine = results.setdefault(name, {})
        predicted = segment(victim, test.images)
        clean = class_counts(predicted, test.labels.long(), len(test.classes), IGNORED)
        mine["clean"] = summary(Counts(*(part.numpy() for part in clean)), None)
        for number, eps in enumerate(map(Epsilon.parse, args.eps)):
            if eps.given in mine:
                continue
            began = time.perf_counter()
            mine[eps.given] = grid(victim, test, val, eps, tune=number == 0)
            print(f"{name}, {eps}: {time.perf_counter() - began:.0f} s", flush=True)
            about = {"images": args.images, "machine": describe_machine(), "results": results}
            with replacing(args.out) as unfinished:
                unfinished.write_text(json.dumps(about, indent=1))
    for name, mine in results.items():
        print(f"\n{name}, clean: {100 * mine['clean']['miou']:.1f}")
        for eps, rows in mine.items():
            if eps != "clean":
                print(f"\neps {eps}\n\n{table_of(rows)}")
    picture(results, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
