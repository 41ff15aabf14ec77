"""Lists, plans and fingerprints of a Decathlon task, and what its dataset.json says of labels and channels."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from segarena.datasets.decathlon.cases import DecathlonConfig, decathlon_case_ids, load_decathlon
from segarena.datasets.decathlon.fingerprint import Fingerprint
from segarena.datasets.decathlon.plan import Plan
from segarena.datasets.decathlon.tasks import find_task

from .harness import Input
from .parts import nifti_bytes, volume

HEAD = b"image,label\n"
CASES = 4
WRONG: dict[str, object] = {
    "empty": "",
    "null": None,
    "number": 5,
    "string": "x",
    "list": [],
    "object": {},
    "deep": json.loads("[" * 40 + "]" * 40),
    "negative": -1,
    "huge": 10**400,
    "nan": float("nan"),
    "true": True,
}


def inputs(rng: random.Random) -> Iterator[Input]:
    row = b"./imagesTr/case_0.nii,./labelsTr/case_0.nii\n"
    for name, text in {
        "empty": b"",
        "no head": row,
        "head alone": HEAD,
        "other head": b"label;image\n" + row,
        "head twice": HEAD + HEAD,
        "no label": HEAD + b"./imagesTr/case_0.nii\n",
        "absent": HEAD + b"./imagesTr/nope.nii,./labelsTr/nope.nii\n",
        "up": HEAD + b"../x.nii,../y.nii\n",
        "absolute": HEAD + b"/etc/passwd,/etc/passwd\n",
        "folder": HEAD + b"./imagesTr,./labelsTr\n",
        "nul": HEAD + b"./images\0Tr/case_0.nii,x\n",
        "long": HEAD + b"a" * 200_000 + b",x\n",
        "quote": HEAD + b'"./imagesTr/case_0.nii,./labelsTr/case_0.nii\n',
        "swapped": HEAD + b"./labelsTr/case_0.nii,./imagesTr/case_0.nii\n",
        "other label": HEAD + b"./imagesTr/case_0.nii,./labelsTr/case_1.nii\n",
        "of the other list": HEAD + b"./imagesTr/case_3.nii,./labelsTr/case_3.nii\n",
        "utf-16": (HEAD + row).decode().encode("utf-16"),
        "zeros": bytes(100),
    }.items():
        yield Input(
            f"decathlon/list {name}", _with(train=text), "refuse", ("train_fold0", "val_fold0", "lists", "data")
        )
    yield Input("decathlon/list as it should be", _with(train=HEAD + row), "accept")
    yield Input("decathlon/list with a mark", _with(train=b"\xef\xbb\xbf" + HEAD + row), "accept")
    for n in range(8):
        data = bytearray(HEAD + row)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield Input(f"decathlon/list random.{n}", _with(train=bytes(data)), "any", ("fold0", "lists", "data"))
    for key in ("labels", "modality"):
        for name, value in WRONG.items():
            yield Input(f"decathlon/{key} {name}", _with(**{key: value}), "refuse", ("dataset.json",))
    task = find_task(5)
    for kind, whole in ((Plan, task.plan), (Fingerprint, task.fingerprint)):
        for name, value in WRONG.items():
            yield Input(
                f"decathlon/{kind.__name__} {name}", _document(kind, whole, None, value), "refuse", ("file.json",)
            )
            field = {"Plan": "strides", "Fingerprint": "window"}[kind.__name__]
            yield Input(
                f"decathlon/{kind.__name__}.{field} {name}",
                _document(kind, whole, field, value),
                "refuse",
                ("file.json",),
            )


def _with(train: bytes | None = None, **changes: object) -> Callable[[Path], Callable[[], object]]:
    """A task whose list of training cases, or part of whose dataset.json, is another."""

    def make(folder: Path) -> Callable[[], object]:
        image, label = volume(1)
        data = folder / "data"
        for kind, content in (("imagesTr", image), ("labelsTr", label)):
            (data / kind).mkdir(parents=True)
            for n in range(CASES):
                (data / kind / f"case_{n}.nii").write_bytes(nifti_bytes(content))
        names = [{"image": f"imagesTr/case_{n}.nii", "label": f"labelsTr/case_{n}.nii"} for n in range(CASES)]
        labels = {str(k): str(k) for k in range(3)}
        content = {"modality": {"0": "CT"}, "labels": labels, "training": names} | changes
        (data / "dataset.json").write_text(json.dumps(content))
        if train is None:
            config = DecathlonConfig(data=str(data), task=3, folds=2)
            return lambda: load_decathlon(config, "train")
        lists = folder / "lists"
        lists.mkdir()
        (lists / "train_fold0.csv").write_bytes(train)
        val = "\n".join(f"imagesTr/case_{n}.nii,labelsTr/case_{n}.nii" for n in (2, 3))
        (lists / "val_fold0.csv").write_bytes(HEAD + val.encode())
        config = DecathlonConfig(data=str(data), task=3, splits=str(lists))
        return lambda: decathlon_case_ids(config, "train")

    return make


def _document(kind: type, whole: object, field: str | None, value: object) -> Callable[[Path], Callable[[], object]]:
    """A JSON file in which a field, or all, is another value."""

    def make(folder: Path) -> Callable[[], object]:
        path = folder / "file.json"
        whole.save(path)  # type: ignore[attr-defined]
        content = value if field is None else json.loads(path.read_text()) | {field: value}
        path.write_text(json.dumps(content))
        return lambda: kind.load(path)  # type: ignore[attr-defined]

    return make
