"""`predict`: masks of one's own images by a trained run, without labels."""

import sys
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from ..threads import add_threads, use_threads


def parser(paper: str | None) -> ArgumentParser:
    """Its options."""
    options = ArgumentParser(
        description="Segment images without labels with a trained run; masks lie in the space of each image's file."
    )
    options.add_argument("--run", type=str, required=True, help="folder of a finished run")
    options.add_argument(
        "--input",
        nargs="+",
        type=str,
        required=True,
        help="files, folders or quoted patterns, space-separated. SPARS: CTs as NIfTI, DICOM series, NRRD, MetaImage; "
        "RL4Seg: echocardiograms as NIfTI, .mhd, PNG, DICOM; SEAT: volumes of the run's task as NIfTI, CTs as SPARS. "
        "DICOM, NRRD and a CT as MetaImage need "
        "pip install 'segarena[io]'",
    )
    options.add_argument("--out", type=str, required=True, help="folder to write; an interrupted call goes on there")
    options.add_argument(
        "--method",
        type=str | None,
        help="policy (the trained one), a reference policy, or a baseline of the run such as score_map_mean, "
        "source_only (default: policy; of a run without one: score_map_mean or source_only; of SEAT: segmenter)",
    )
    options.add_argument(
        "--threshold",
        type=float | None,
        help="SPARS: mask = map above it, for all images (default: as in `evaluate`, by the run's validation cases)",
    )
    options.add_argument(
        "--spacing_mm",
        type=tuple[float, float] | None,
        help="RL4Seg: size (y, x) of a pixel of pictures that do not say it, as '[0.154,0.308]'",
    )
    options.add_argument(
        "--device", type=str | None, help="auto, cpu, cuda or cuda:N (default: as the run's configuration says)"
    )
    options.add_argument(
        "--on_error",
        type=str,
        default="stop",
        help="stop or skip: end at an image that cannot be read or segmented, or leave it out (exit status 1)",
    )
    options.add_argument(
        "--overwrite",
        action="store_true",
        help="replace what --out holds of other predictions; other files in it stay",
    )
    add_threads(options)
    return options


def run(options: Namespace, command: str, paper: str | None) -> int:
    """Masks, maps, pictures and a table; 1 if an image was skipped."""
    from ...common.checks import check_choice
    from ...common.runs import Run
    from ...datasets.readers import named
    from ..configuration import read_experiment
    from ..prediction import open_predictor, predict_each
    from ..predictor import PredictOptions

    for text in options.input:
        named(text)  # before the run is loaded, which may take long
    check_choice("on_error", options.on_error, ("stop", "skip"))
    use_threads(options.threads, default=read_experiment(Run.open(options.run))[0].threads)
    chosen = PredictOptions(options.method, options.threshold, options.spacing_mm)
    predictor = open_predictor(options.run, chosen, options.device)
    settings = predictor.settings
    theta = f", θ = {settings['threshold']:.4g}" if settings.get("threshold") is not None else ""
    print(f"method     {settings['method']} ({settings['title']}){theta}")
    for note in predictor.notes:
        print(f"note       {note}")
    sys.stdout.flush()
    out = Path(options.out)
    images = predictor.find(options.input)
    predictions = predict_each(predictor, images, out, on_error=options.on_error, overwrite=options.overwrite)
    for one in predictions:
        if one.status == "skipped":
            print(f"skipped    {one.id}: {one.reason}", file=sys.stderr)
        else:
            kept = ", kept from an earlier call" if one.status == "kept" else ""
            print(f"mask       {one.files['mask']}{kept}")
    print(f"table      {out / 'predictions.csv'}")
    return 1 if any(one.status == "skipped" for one in predictions) else 0
