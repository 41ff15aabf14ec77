"""`attack`: perturb one's own pictures so that a segmenter goes wrong."""

import sys

from jsonargparse import ArgumentParser, Namespace

from ..threads import add_threads, use_threads


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Attack a segmenter on pictures of one's own: perturbed images, predictions before and after, and "
        "the damage to each."
    )
    options.add_argument(
        "--input", nargs="+", type=str, required=True, help="PNG or JPEG: files, folders or quoted patterns"
    )
    options.add_argument(
        "--model",
        type=str,
        required=True,
        help="the attacked segmenter: folder of a finished run of paper rp_pgd, a victim's file, or scenes or liver, "
        "which come with the package",
    )
    options.add_argument(
        "--labels",
        type=str | None,
        help="folder with the labels of each image, a PNG of class numbers (255: ignored) of the image's name "
        "(default: the model's own prediction of the clean image is what is right)",
    )
    options.add_argument("--attack", type=str, default="pgd_20", help="attack by name, with its number of steps")
    options.add_argument("--eps", type=str, default="8/255", help="radius as a share of the range, such as 0.03, 8/255")
    options.add_argument("--out", type=str, required=True, help="folder to write; an interrupted call goes on there")
    options.add_argument("--seed", type=int, default=0, help="seed of random starts, of each image the same")
    options.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda or cuda:N")
    options.add_argument(
        "--on_error",
        type=str,
        default="stop",
        help="stop or skip: end at an image that cannot be read or attacked, or leave it out (exit status 1)",
    )
    options.add_argument(
        "--overwrite", action="store_true", help="replace what --out holds of other attacks; other files in it stay"
    )
    add_threads(options)
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Images, masks, pictures and a table; 1 if an image was skipped."""
    from pathlib import Path

    from ...common.checks import check_choice
    from ...common.device import resolve_device
    from ...datasets.readers import named
    from ..attacking import TABLE, Attacker
    from ..prediction import predict_each

    for text in options.input:
        named(text)  # before the victim is loaded
    check_choice("on_error", options.on_error, ("stop", "skip"))
    device = resolve_device(options.device)
    use_threads(options.threads, default=0)
    attacker = Attacker.of(
        options.model, options.attack, options.eps, labels=options.labels, device=device, seed=options.seed
    )
    print(f"attack     {attacker.settings['title']}, ε = {attacker.eps}")
    sys.stdout.flush()
    out = Path(options.out)
    images = attacker.find(options.input)
    found = predict_each(attacker, images, out, on_error=options.on_error, overwrite=options.overwrite, table=TABLE)
    for one in found:
        if one.status == "skipped":
            print(f"skipped    {one.id}: {one.reason}", file=sys.stderr)
        else:
            damage = one.facts["damage"]
            said = "no pixel is labelled" if damage is None else f"mIoU falls by {damage:.3f}"
            kept = ", kept from an earlier call" if one.status == "kept" else ""
            print(f"attacked   {one.files['attacked']}: {said}{kept}")
    print(f"table      {out / TABLE.name}.csv")
    return 1 if any(one.status == "skipped" for one in found) else 0
