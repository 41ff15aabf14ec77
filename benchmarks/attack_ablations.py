"""What each part of RP-PGD is worth: options of the attack, one changed at a time (docs/rp-pgd.md, Results).

    python benchmarks/attack_ablations.py --victim runs/none_0/segmenter/victim.safetensors runs/none_1/...

Victims of phantom scenes, one seed each, on 48 scenes of the split test, at the attack's own step size, from the clean
image where a row names no other start. Writes results/attack_ablations.json beside this, where a killed run goes on: of
the same victims, in the same order, only new rows are computed. Prints the table.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from attack_grid import attacked_counts, pools
from segarena.attacks import core
from segarena.attacks.budget import Epsilon
from segarena.attacks.methods import ATTACKS
from segarena.attacks.options import RELEASED, RPOptions
from segarena.attacks.regions import IGNORED, TRUE, next_regions
from segarena.attacks.victims import feature_layer_of, load_victim
from segarena.common.files import replacing
from segarena.evaluation.machine import describe_machine
from segarena.evaluation.robustness_metrics import image_miou
from segarena.evaluation.statistics import bootstrap_interval

RESULT = Path(__file__).parent / "results" / "attack_ablations.json"
STEPS = (3, 20)
PLAIN = RPOptions()
BASE = "RP-PGD++"
RECOMPUTED = "regions recomputed: right again is True"
"""The one variant that no option has: pixels of Boundary and False do not stay there."""
VARIANTS = {
    BASE: ("rp_pgd_pp", PLAIN),
    "regions alone (RP-region)": ("rp_region", PLAIN),
    "regions, inter (RP-PGD)": ("rp_pgd", PLAIN),
    "intra below 0: classes spread": ("rp_pgd_pp", replace(PLAIN, w_intra=-0.25)),
    "prototype terms 4 times as heavy": ("rp_pgd_pp", replace(PLAIN, w_inter=2.0, w_intra=1.0)),
    "features without gradient": ("rp_pgd_pp", replace(PLAIN, detach_features=True)),
    "steps counted from 0": ("rp_pgd_pp", replace(PLAIN, lambda_base=0)),
    "regions of the batch": ("rp_pgd_pp", replace(PLAIN, region_norm="batch")),
    "one mean over all pixels": ("rp_pgd_pp", replace(PLAIN, region_norm="global")),
    "one mean, regions alone (RP-global)": ("rp_global", PLAIN),
    "prototypes of the batch": ("rp_pgd_pp", replace(PLAIN, proto_scope="batch")),
    "background has an intra term, too": ("rp_pgd_pp", replace(PLAIN, intra_skip=())),
    "inter term of ordered pairs, twice": ("rp_pgd_pp", replace(PLAIN, inter_norm="ordered")),
    "intra term of the last class alone": ("rp_pgd_pp", replace(PLAIN, intra_agg="last")),
    "ignored pixels count as False": ("rp_pgd_pp", replace(PLAIN, ignore_as_false=True)),
    "released program, from the clean image": ("rp_pgd_pp", replace(RELEASED, norm_clamp_start=False)),
    RECOMPUTED: ("rp_pgd_pp", PLAIN),
    "start clamped after normalisation": ("rp_pgd_pp", replace(PLAIN, norm_clamp_start=True)),
    "released program, from its start": ("rp_pgd_pp", RELEASED),
    "BIM": ("bim", None),
}
"""Attack and options by what is changed."""
LAYERS = ("model.merge.0", "model.merge.1", "model.merge.2")
"""Outputs of the U-Net's way up, from a sixteenth to a quarter of the image's size."""


def recomputed(regions, right):
    """Regions after a step where none is absorbing: whatever is right is True, what was True and is wrong Boundary."""
    return torch.where((regions != IGNORED) & right, TRUE, next_regions(regions, right)).to(torch.uint8)


def attacked_miou(victim, pool, name, options, steps, eps, layer):
    """mIoU of each image after an attack, [N]."""
    arguments = {"eps": eps, "steps": steps, "random_start": False}
    if options is not None:
        arguments |= {"feature_layer": layer, "options": options}
    if options is not None and options.norm_clamp_start:
        arguments["generator"] = torch.Generator().manual_seed(0)
    return image_miou(attacked_counts(ATTACKS[name], victim, pool, **arguments))


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--victim", nargs="+", required=True, metavar="FILE", help="one for each seed")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    found = json.loads(args.out.read_text())["miou"] if args.out.exists() else {}
    for number, path in enumerate(args.victim):
        victim, classes = load_victim(path)
        pool, own = pools(classes, args.images)[1], feature_layer_of(victim)
        cases = [(title, *given, own) for title, given in VARIANTS.items()]
        cases += [(f"features of {layer}", *VARIANTS[BASE], layer) for layer in LAYERS if layer != own]
        for title, name, options, layer in cases:
            for steps in STEPS:
                networks = found.setdefault(title, {}).setdefault(str(steps), [])
                if len(networks) == number:
                    rule = recomputed if title == RECOMPUTED else next_regions
                    with mock.patch.object(core, "next_regions", rule):
                        values = attacked_miou(victim, pool, name, options, steps, Epsilon.parse(args.eps), layer)
                    networks.append([round(float(one), 4) for one in values])
        with replacing(args.out) as unfinished:
            unfinished.write_text(json.dumps({"eps": args.eps, "machine": describe_machine(), "miou": found}))
        print(path, flush=True)
    print("| changed | N = 3 | N = 20 | N = 3 less RP-PGD++ | N = 20 less RP-PGD++ |\n|---|---|---|---|---|")
    for title, by_steps in found.items():
        values = [100 * np.array(by_steps[str(steps)]) for steps in STEPS]
        less = [
            bootstrap_interval(one - 100 * np.array(found[BASE][str(n)])) for one, n in zip(values, STEPS, strict=True)
        ]
        shown = ["–" if title == BASE else "{:+.1f} [{:.1f}, {:.1f}]".format(*one) for one in less]
        print("|", " | ".join([title, *(f"{one.mean():.1f}" for one in values), *shown]), "|")


if __name__ == "__main__":
    main()
