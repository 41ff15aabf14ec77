"""A trained run on images without labels: masks, maps and pictures of each, and one table of them.

`predict` is the command of that name and `segarena.predict`. The folder that it writes has the files of every image and

predictions.json    what predicted, and one entry per image: file, status, numbers
predictions.csv     the entries as a table

predictions.json is written anew after each image, so that a call that was stopped goes on where it was.
"""

import csv
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import __version__
from ..common.checks import check_choice
from ..common.files import file_digest, replacing, write_text
from ..common.reading import read_json
from ..common.runs import Run
from ..datasets.folders import PIXELS, suffix_of
from ..datasets.readers import ImageFiles
from .configuration import read_experiment
from .predictor import PredictOptions, Predictor

log = logging.getLogger(__name__)
OnError = Literal["stop", "skip"]
Status = Literal["done", "kept", "skipped"]
HEADERS = (".mhd", ".nhdr")
"""Suffixes of headers whose pixels lie in a file beside them."""


@dataclass(frozen=True)
class Table:
    """What the table of a call is called, and what it shows beside the facts of each image."""

    name: str
    """Of its files, without suffix."""
    entries: str
    """What the images' entries are called."""
    files: tuple[str, ...]
    """Kinds of files that have a column in the CSV."""
    settings: tuple[str, ...]
    """Settings that have a column in the CSV."""


PREDICTIONS = Table("predictions", "predictions", ("mask",), ("method",))


@dataclass(frozen=True)
class Prediction:
    """What came of one image."""

    id: str
    """Begin of the names of its files."""
    image: str
    """The image's own file; of a DICOM series the folder."""
    status: Status
    """done; kept: done by an earlier call with the same settings; skipped: it could not be read or segmented."""
    files: dict[str, Path] = field(default_factory=dict)
    """What was written, by kind: mask, score or doubt, picture."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Numbers and texts of its mask, see docs/spars.md, docs/rl4seg.md and docs/seat.md."""
    seconds: float | None = None
    """Time that reading, segmenting and writing took."""
    reason: str = ""
    """Why it was skipped."""
    digest: str = ""
    """SHA-256 of the image's files: another image of the same name is predicted anew."""


def predict(
    run: str | Path,
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    method: str | None = None,
    on_error: OnError = "stop",
    device: str | None = None,
    *,
    threshold: float | None = None,
    spacing_mm: tuple[float, float] | None = None,
    overwrite: bool = False,
) -> list[Prediction]:
    """Segment images with a trained run, as `evaluate` does, and write masks in the space of each image's file.

    Args:
        run: folder of a finished run.
        inputs: files, folders and patterns ("ct/*/*.nii.gz"). SPARS takes CTs: NIfTI, and with the extra `io` DICOM
            series, NRRD and MetaImage. RL4Seg takes echocardiograms: NIfTI, .mhd, PNG, and with `io` DICOM.
            SEAT takes volumes of the run's task: NIfTI, and CTs as SPARS.
        out: folder to write; a new or empty one, or that of an earlier call with the same run and settings, whose
            finished images are kept.
        method: "policy", a reference policy or a baseline of the run; None: the trained policy, or SPARS's score map
            where a run has none, or SEAT's segmenter.
        on_error: stop at an image that cannot be read or segmented, or skip it.
        device: auto, cpu, cuda or cuda:N; None: that of the run's configuration.
        threshold: θ of SPARS's masks, one for all; None: as the run's validation cases say (evaluation.mask).
        spacing_mm: (y, x) of a pixel where a picture's file does not say it.
        overwrite: replace what an earlier call with other settings has left in `out`.

    Returns:
        One prediction per image, in the order of the inputs.

    Raises:
        ValueError: a run, method or folder that cannot be used; with on_error "stop" an image that cannot.
        FileNotFoundError: an input that is not there, or a folder without images.
    """
    check_choice("on_error", on_error, get_args(OnError))
    predictor = open_predictor(run, PredictOptions(method, threshold, spacing_mm), device)
    inputs = [inputs] if isinstance(inputs, str | Path) else inputs
    return predict_each(predictor, predictor.find(inputs), Path(out), on_error=on_error, overwrite=overwrite)


def open_predictor(run: str | Path, options: PredictOptions, device: str | None = None) -> Predictor:
    """A run, loaded once for any number of images.

    Raises:
        ValueError: as `predict`.
    """
    opened = Run.open(run)
    paper, experiment = read_experiment(opened)
    return paper.predictor(opened, replace(experiment, device=device or experiment.device), options)


def predict_each(
    predictor: Predictor,
    images: Sequence[ImageFiles],
    out: Path,
    *,
    on_error: OnError,
    overwrite: bool,
    table: Table = PREDICTIONS,
) -> list[Prediction]:
    """Predict the images one by one; see `predict`. table: what is kept of them.

    Raises:
        ValueError, FileNotFoundError: as there.
    """
    settings = {"version": __version__, **predictor.settings}
    finished = _finished(out, table, settings, overwrite=overwrite)
    predictions = dict[str, Prediction]()
    with logging_redirect_tqdm():
        for files in tqdm(images, desc=table.name, unit="image", disable=None):
            started = time.perf_counter()
            try:
                digest = _digest(files)
                if (before := finished.get(files.id)) and before.digest == digest:
                    one = replace(before, status="kept")
                else:
                    written = predictor.predict(files, out)
                    seconds = time.perf_counter() - started
                    one = Prediction(
                        files.id, str(files.path), "done", written.files, written.facts, seconds, digest=digest
                    )
            except (ValueError, OSError) as error:
                if on_error == "stop":
                    raise
                log.warning("skipping %s: %s", files.id, error)
                one = Prediction(files.id, str(files.path), "skipped", reason=str(error))
            predictions[files.id] = one
            _write(out, table, settings, (finished | predictions).values())
    return list(predictions.values())


def _digest(files: ImageFiles) -> str:
    """SHA-256 of all files of an image: every slice, the pixels beside a header, and its labels where they are used."""
    parts = files.slices or (files.path, *(files.path.with_suffix(s) for s in PIXELS if suffix_of(files.path, HEADERS)))
    parts = parts if files.label is None else (*parts, files.label)
    digests = [file_digest(path) for path in parts if path.is_file()]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


# -- what is kept --------------------------------------------------------------------------------------------------


def _finished(out: Path, table: Table, settings: Mapping[str, Any], *, overwrite: bool) -> dict[str, Prediction]:
    """The images that an earlier call with the same settings has done, by id.

    Raises:
        ValueError: the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"out is {str(out)!r}, which is no folder")
    if not out.is_dir() or not any(out.iterdir()):
        return {}
    file, way_out = out / f"{table.name}.json", "name another folder, or replace what it has with --overwrite"
    try:
        content = read_json(file)
        before, entries = content["settings"], [_read(out, entry) for entry in content[table.entries]]
    except FileNotFoundError:
        if overwrite:
            return {}
        raise ValueError(f"out is {str(out)!r}, which is not empty and holds no {file.name}; {way_out}") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if overwrite:
            return {}
        raise ValueError(f"{file} cannot be understood ({error!r}); {way_out}") from error
    if differing := [key for key in sorted({*before, *settings}) if before.get(key) != settings.get(key)]:
        if overwrite:
            return {}
        key = differing[0]
        raise ValueError(
            f"out is {str(out)!r}, which holds {table.entries} with {key} = {before.get(key)!r}, not "
            f"{settings.get(key)!r}; {way_out}"
        )
    done = (one for one in entries if one.status != "skipped" and all(path.is_file() for path in one.files.values()))
    return {} if overwrite else {one.id: one for one in done}


def _read(out: Path, entry: Mapping[str, Any]) -> Prediction:
    return Prediction(**{**entry, "files": {kind: out / name for kind, name in entry["files"].items()}})


def _write(out: Path, table: Table, settings: Mapping[str, Any], predictions: Iterable[Prediction]) -> None:
    """The JSON and the CSV of the table; file names as they lie in the folder."""
    entries = [
        asdict(one) | {"files": {kind: path.name for kind, path in one.files.items()}, "status": _kept(one.status)}
        for one in predictions
    ]
    content = {"settings": settings, table.entries: entries}
    write_text(out / f"{table.name}.json", json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    found = [item for entry in entries for item in entry["facts"].items()]
    facts = list(dict.fromkeys(name for name, value in found if not isinstance(value, dict)))
    with replacing(out / f"{table.name}.csv") as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["id", "image", *table.files, *table.settings, *facts, "seconds", "status", "reason"])
        for entry in entries:
            values = [settings.get(name) for name in table.settings] + [
                _cell(entry["facts"].get(name)) for name in facts
            ]
            names, seconds = [entry["files"].get(kind) for kind in table.files], entry["seconds"]
            ends = [None if seconds is None else round(seconds, 3), entry["status"], entry["reason"]]
            lines.writerow([entry["id"], entry["image"], *names, *values, *ends])


def _kept(status: Status) -> Status:
    return "done" if status == "kept" else status


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value
