"""What a classifier makes of a marker that tells the class in its training images, but not in patients (docs/apga.md).

    python benchmarks/apga_shortcut.py --run runs/none_0 runs/none_1 runs/erased_0 runs/erased_1 ...

Runs of `paper: apga` on phantoms with `data.artefact`. Each is judged on the test images without markers, and on the
same images with markers that say nothing of the class: those whose marker agrees with the class as in training, and
those where it speaks against it. The first method named is what the others are compared with. A run that stands in the
result is not judged again. Writes results/apga_shortcut.json beside this and prints the table.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from segarena.agents.apga.joint import select_all
from segarena.agents.apga.training import trained
from segarena.agents.configuration import read_experiment
from segarena.classifiers.xray import probabilities
from segarena.common.files import replacing
from segarena.common.runs import Run
from segarena.datasets.xray.images import load_xrays
from segarena.evaluation.classification import paired_differences
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.statistics import bootstrap_interval

RESULT = Path(__file__).parent / "results" / "apga_shortcut.json"
WAYS = ("no markers", "marker as in training", "marker against the class")


def judged(folder):
    """p of class 1 of each test image without and with markers, and the share of markers that the agent selects."""
    run = Run.open(folder)
    context, players = trained(read_experiment(run)[1], run)
    data, split = context.experiment.data, context.experiment.test_split
    clean = load_xrays(replace(data, artefact=None), split, "--").to(context.device)
    marked = load_xrays(data, split, "--").to(context.device)
    found = {"method": context.experiment.name, "seed": context.experiment.seed, "artefact": data.artefact}
    with torch.no_grad():
        for name, pool in (("no markers", clean), ("markers", marked)):
            found[name] = [round(p, 4) for p in probabilities(players.classifier, pool.images)[:, 1].tolist()]
        if players.agent is not None:
            there = (marked.images != clean.images).to(torch.float32)  # [N, 1, S, S]: the marker's pixels
            rows = marked.marked.to(context.device)
            shares = (select_all(players, marked) * there).sum(dim=(1, 2, 3))[rows] / there.sum(dim=(1, 2, 3))[rows]
            found["marker selected"] = round(float(shares.mean()), 4)
    same = {"labels": marked.labels.tolist(), "marked": marked.marked.tolist(), "studies": list(marked.studies)}
    return found, same


def percent(interval, sign=""):
    mean, low, high = (100 * value for value in interval)
    return f"{mean:{sign}.1f} [{low:.1f}, {high:.1f}]"


def table(known):
    """Accuracy of each method by what the marker says, and that without markers less the first method's, paired."""
    labels, marked = (torch.tensor(known["images"][name]) for name in ("labels", "marked"))
    studies, methods = known["images"]["studies"], {}
    for one in known["runs"].values():
        methods.setdefault(one["method"], []).append(one)
    head = ["Method", *WAYS, "no markers, less the first", "marker selected (%)"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    base = None
    for method, runs in methods.items():
        p = {name: torch.tensor([one[name] for one in runs]) for name in ("no markers", "markers")}
        rights = {name: ((value > 0.5) == labels).double().numpy() for name, value in p.items()}
        agrees = (marked == (labels == 1)).numpy()
        cells = [percent(bootstrap_interval(rights["no markers"], clusters=studies))]
        for chosen in (agrees, ~agrees):
            of_them = [study for study, one in zip(studies, chosen, strict=True) if one]
            cells.append(percent(bootstrap_interval(rights["markers"][:, chosen], clusters=of_them)))
        both = torch.stack([1 - p["no markers"], p["no markers"]], dim=-1)
        if base is None:
            base, less = both, "–"
        else:
            less = percent(paired_differences(both, base, labels, studies)["accuracy"], "+")
        shares = [one["marker selected"] for one in runs if "marker selected" in one]
        cells += [less, ", ".join(f"{100 * share:.0f}" for share in shares) or "–"]
        lines.append(f"| {method} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--run", nargs="+", required=True, metavar="FOLDER", help="trained to the end, on markers")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    known = json.loads(args.out.read_text()) if args.out.exists() else {"machine": describe_machine(), "runs": {}}
    for folder in args.run:
        name = Path(folder).name
        if name not in known["runs"]:
            known["runs"][name], same = judged(folder)
            if known.setdefault("images", same) != same:
                raise SystemExit(f"{folder} was trained for other test images than the runs before; judge it apart")
            with replacing(args.out) as unfinished:
                unfinished.write_text(json.dumps(known))
    print(table(known))


if __name__ == "__main__":
    main()
