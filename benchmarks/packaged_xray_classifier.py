"""Train the small classifier of X-rays that comes with the package, on phantoms, in a minute on one core:

    python benchmarks/packaged_xray_classifier.py --out classifiers/weights

It learns from phantom limbs of train (studies from 0), the epoch of the highest accuracy on studies of val is kept, and
figures are of the 250 studies of test. Its card stands beside the weights.
"""

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from segarena.classifiers.train_xray import FILE, XrayTrainingConfig, build_classifier, train_xray
from segarena.classifiers.xray import PACKAGED, probabilities
from segarena.common.networks import load_network, save_network
from segarena.common.runs import Run
from segarena.datasets.xray.images import PhantomStudies, XrayConfig, load_xrays
from segarena.evaluation.classification import image_metrics


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the weights")
    parser.add_argument("--studies", type=int, default=1500, help="of train, with two images each")
    parser.add_argument("--epochs", type=int, default=12)
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = XrayConfig(phantom_studies=PhantomStudies(train=args.studies, val=500, test=250))
    config = XrayTrainingConfig(
        network="small_cnn", in_channels=1, epochs=args.epochs, patience=args.epochs, learning_rate=3e-3
    )
    net = build_classifier(config, len(data.classes), seed=0, device=torch.device("cpu"))
    train, val, test = (load_xrays(data, split) for split in ("train", "val", "test"))
    with tempfile.TemporaryDirectory() as folder:
        best = train_xray(net, train, val, config, Run(Path(folder)), seed=0, metrics=image_metrics)
        net = load_network(Path(folder) / FILE, type(net))
    judged = image_metrics(probabilities(net, test.images), test.labels)
    marked = load_xrays(replace(data, artefact=0.5), "test")
    other = image_metrics(probabilities(net, marked.images), marked.labels)
    figures = {
        "images": len(train),
        "epoch": int(best["epoch"]),
        **{name: round(judged[name], 4) for name in ("accuracy", "auroc", "kappa")},
        "accuracy_with_markers": round(other["accuracy"], 4),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    save_network(args.out / PACKAGED.name, net, {"trained_on": train.origin, "test": figures})
    print(json.dumps(figures), f"{(args.out / PACKAGED.name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
