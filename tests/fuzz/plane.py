"""2-D NIfTI below CAMUS' names, and prepared sets with a CSV."""

import csv
import gzip
import io
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .camus import plane
from .harness import Input
from .nifti import HEADER, WRONG, gz_bomb, patched
from .parts import ECHO, malicious, merged, nifti_bytes, train


def inputs(rng: random.Random) -> Iterator[Input]:
    """2-D NIfTI below CAMUS' names, and prepared sets with a CSV."""
    image, label = plane()

    def folder_of(folder: Path, data: bytes | None = None, suffix: str = ".nii.gz") -> list[str]:
        root = folder / "data"
        for n, patient in enumerate(("patient0001", "patient0002")):
            (root / patient).mkdir(parents=True)
            for kind in ("2CH_ED", "2CH_ES", "4CH_ED", "4CH_ES"):
                for end, array in (("", plane(n)[0]), ("_gt", plane(n)[1])):
                    content = nifti_bytes(array.T.copy(), np.diag([0.3, 0.15, 1, 1]))
                    packed = gzip.compress(content, mtime=0) if suffix == ".nii.gz" else content
                    (root / patient / f"{patient}_{kind}{end}{suffix}").write_bytes(packed)
        if data is not None:
            (root / "patient0001" / f"patient0001_2CH_ED{suffix}").write_bytes(data)
        return train(folder, merged(ECHO, {"source.data": str(root), "target.data": str(root)}))

    def make_input(name: str, must: str, data: bytes | None, suffix: str = ".nii.gz") -> Input:
        return Input(f"plane/{name}", lambda folder: folder_of(folder, data, suffix), must, ("patient0001_2CH_ED",))

    plain = nifti_bytes(image.T.copy(), np.diag([0.3, 0.15, 1, 1]))
    packed = gzip.compress(plain, mtime=0)
    yield make_input("valid", "accept", None)
    for n in sorted({0, 10, len(packed) - 1, *rng.sample(range(20, len(packed)), 5)}):
        yield make_input(f"gz.cut.{n}", "refuse", packed[:n])
    for n in sorted({0, 347, 352, len(plain) - 1, *rng.sample(range(353, len(plain)), 5)}):
        yield make_input(f"cut.{n}", "refuse", plain[:n], ".nii")
    wrong = {
        **WRONG,
        "dim0": [0, 1, 8, -1, 32767, -32768],
        "dim1": [0, -1, 32767],
        "dim3": [],
        "srow_x0": [],
        "srow_z2": [],
        "datatype": [0, 1, 32, 128, 1792, 2048, 2304, 9999, -1],
        "pixdim1": [0.0, float("inf"), -1.5],
    }
    for name in (
        "dim0",
        "dim1",
        "dim3",
        "datatype",
        "bitpix",
        "pixdim1",
        "vox_offset",
        "scl_slope",
        "magic",
        "sizeof_hdr",
    ):
        offset, form, values = HEADER[name]
        for value in values:
            data = patched(plain, offset, form, value)
            yield make_input(
                f"header.{name}.{value!r}", "refuse" if value in wrong.get(name, []) else "any", data, ".nii"
            )
    head = bytearray(plain[:352])
    struct.pack_into("<3h", head, 40, 2, 32767, 32767)
    yield make_input("dimension bomb", "refuse", bytes(head) + bytes(10), ".nii")
    yield make_input("gz bomb", "refuse", gz_bomb(plain, 64, 96))
    for name, data in {"empty": b"", "text": b"x" * 1000, "pickle": malicious(), "noise": rng.randbytes(3000)}.items():
        yield make_input(f"not nifti.{name}", "refuse", data)
    for name, array in {
        "constant": np.zeros((40, 48), np.uint8),
        "nan": np.full((40, 48), np.nan, np.float32),
        "3d": np.zeros((40, 48, 5), np.uint8),
        "1d": np.zeros((40,), np.uint8),
        "beyond 255": image.T.astype(np.int16) * 2,
        "complex": image.T.astype(np.complex64) * 1j,
    }.items():
        yield make_input(
            f"array.{name}", "refuse", gzip.compress(nifti_bytes(array.copy(), np.diag([0.3, 0.15, 1, 1])), mtime=0)
        )

    head_row = ["study", "view", "dicom_uuid", "instant", "split_0"]
    rows = [
        [s, v, f"{s}{v}", i, p]
        for s, p in (("s1", "train"), ("s2", "val"))
        for v in ("2ch", "4ch")
        for i in ("ED", "ES")
    ]

    def table(lines: list[list[str]]) -> bytes:
        text = io.StringIO()
        csv.writer(text).writerows(lines)
        return text.getvalue().encode()

    def prepared(folder: Path, text: bytes) -> list[str]:
        root = folder / "data"
        for study in ("s1", "s2"):
            for view in ("2ch", "4ch"):
                for instant in ("ED", "ES"):
                    for part, array in (("img", image / 255), ("gt", np.minimum(label, 2))):
                        place = root / part / study / view / f"{study}{view}_{instant}.nii.gz"
                        place.parent.mkdir(parents=True, exist_ok=True)
                        kind = np.float32 if part == "img" else np.uint8
                        place.write_bytes(
                            gzip.compress(nifti_bytes(array.T.astype(kind), np.diag([0.3, 0.15, 1, 1])), mtime=0)
                        )
        (root / "list.csv").write_bytes(text)
        config = merged(ECHO, {"source.data": str(root), "target.data": str(root), "source.patients": None})
        return train(folder, config)

    def listed(name: str, must: str, text: bytes) -> Input:
        return Input(f"csv/{name}", lambda folder: prepared(folder, text), must, ("list.csv", "s1", "img", "data"))

    def changed(row: int, column: int, value: str) -> list[list[str]]:
        new = [list(line) for line in rows]
        new[row][column] = value
        return [head_row, *new]

    yield listed("valid", "accept", table([head_row, *rows]))
    for name, text in {
        "empty": b"",
        "header only": table([head_row]),
        "no header": table(rows),
        "binary": rng.randbytes(2000),
        "utf-16": table([head_row, *rows]).decode().encode("utf-16"),
        "nul": table([head_row, *rows]).replace(b"s1", b"s\0"),
        "open quote": table([head_row, *rows]).replace(b"s1", b'"s1', 1),
        "long field": table(changed(0, 2, "u" * 200_000)),
        "semicolons": table([head_row, *rows]).replace(b",", b";"),
        "half": table([head_row, *rows])[:60],
    }.items():
        yield listed(name, "refuse", text)
    for column in range(5):
        yield listed(
            f"without column {head_row[column]}",
            "refuse",
            table([[*line[:column], *line[column + 1 :]] for line in [head_row, *rows]]),
        )
        yield listed(f"empty {head_row[column]}", "refuse", table(changed(0, column, "")))
    for value in ("../../x", "/etc/passwd", "..", "a/../../../x", "a\0b", "n" * 300):
        yield listed(f"uuid.{value[:12]!r}", "refuse", table(changed(0, 2, value)))
        yield listed(f"study.{value[:12]!r}", "refuse", table(changed(0, 0, value)))
    yield listed("view", "refuse", table(changed(0, 1, "3CH")))
    yield listed("instant", "refuse", table(changed(0, 3, "XX")))
    yield listed("a patient in two splits", "refuse", table(changed(0, 4, "val")))
    yield listed("a row twice", "refuse", table([head_row, *rows, rows[0]]))
    yield listed("short row", "refuse", table([head_row, *rows, ["s3"]]))
    yield listed("wide row", "any", table([head_row, *rows[1:], [*rows[0], "x", "y"]]))
