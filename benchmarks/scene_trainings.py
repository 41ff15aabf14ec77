"""Adversarial trainings under strong attacks, on phantom scenes of the split test (docs/rp-pgd.md, Results).

    python benchmarks/scene_trainings.py --victim none=runs/none/segmenter/victim.safetensors --victim SAT=...

One JSON file for each victim and attack lies in results/scene_trainings beside this, where a killed run goes on, with a
page and figures that are made of them.
"""

import argparse
from pathlib import Path

from segarena.attacks.victims import feature_layer_of, load_victim
from segarena.datasets.scenes.images import PhantomScenes, SceneDataConfig, load_scenes
from segarena.evaluation.robustness import robustness_report

RESULTS = Path(__file__).parent / "results" / "scene_trainings"
ATTACKS = ("pgd_20", "segpgd_20", "rp_pgd_pp_20", "sea_30")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--victim", action="append", required=True, metavar="NAME=FILE")
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    data = SceneDataConfig(size=65, phantom_scenes=PhantomScenes(test=args.images))
    test = load_scenes(data, "test").pool()
    for name, path in (one.split("=", 1) for one in args.victim):
        victim, classes = load_victim(path)
        report = robustness_report(
            victim,
            test.images.float() / 255,
            test.labels,
            eps=args.eps,
            attacks=ATTACKS,
            name=name,
            classes=classes,
            ids=test.ids,
            batch_size=16,
            feature_layer=feature_layer_of(victim),
            sanity=False,
            out=args.out,
        )
        print(report, flush=True)


if __name__ == "__main__":
    main()
