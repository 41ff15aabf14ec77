"""CAMUS as it was first published: MetaImage headers (.mhd), pixels (.raw) and lists of patients."""

import random
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from .harness import Input
from .parts import ECHO, malicious, merged, train

WIDTH, HEIGHT = 40, 48


def plane(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Image and mask of an echocardiogram, uint8 [Y, X]."""
    rng = np.random.default_rng(seed)
    image = rng.integers(10, 250, (HEIGHT, WIDTH)).astype(np.uint8)
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[10:40, 8:32] = 2
    label[14:36, 12:28] = 1
    label[38:44, 12:28] = 3
    return image, label


MHD = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "ElementSpacing": "0.3 0.15 1.5",
    "DimSize": f"{WIDTH} {HEIGHT} 1",
    "ElementNumberOfChannels": "1",
    "ElementType": "MET_UCHAR",
}


def mhd(name: str, changes: dict | None = None) -> str:
    fields = {**MHD, "ElementDataFile": f"{name}.raw", **(changes or {})}
    return "".join(f"{key} = {value}\n" for key, value in fields.items() if value is not None)


def camus(folder: Path, changes: dict | None = None) -> tuple[Path, list[str]]:
    """CAMUS v1 of two patients; where the first image of the first lies, and the command that trains on it."""
    data = folder / "data"
    for n, patient in enumerate(("patient0001", "patient0002")):
        (data / patient).mkdir(parents=True)
        for view in ("2CH", "4CH"):
            for instant in ("ED", "ES"):
                image, label = plane(n)
                for suffix, array in (("", image), ("_gt", label)):
                    name = f"{patient}_{view}_{instant}{suffix}"
                    (data / patient / f"{name}.mhd").write_text(mhd(name))
                    (data / patient / f"{name}.raw").write_bytes(array.tobytes())
    config = merged(ECHO, {"source.data": str(data), "target.data": str(data), **(changes or {})})
    return data / "patient0001" / "patient0001_2CH_ED.mhd", train(folder, config)


def inputs(rng: random.Random) -> Iterator[Input]:
    here = ("patient0001_2CH_ED",)

    def make_input(name: str, must: str, write: Callable[[Path], object], changes: dict | None = None) -> Input:
        def make(folder: Path) -> list[str]:
            place, arguments = camus(folder, changes)
            write(place)
            return arguments

        return Input(f"camus/{name}", make, must, here)

    def header(name: str, must: str, fields: dict, pixels: bytes | None = None, changes: dict | None = None) -> Input:
        def write(place: Path) -> None:
            place.write_text(mhd(place.stem, fields))
            if pixels is not None:
                place.with_suffix(".raw").write_bytes(pixels)

        return make_input(name, must, write, changes)

    image, label = plane()
    raw = image.tobytes()
    yield make_input("valid", "accept", lambda place: None)
    for key in ("DimSize", "ElementType", "ElementDataFile", "ElementSpacing"):
        yield header(f"without.{key}", "refuse", {key: None})
    for n, size in enumerate(
        (
            "",
            "0 0 1",
            "-40 48 1",
            f"{WIDTH}",
            f"{HEIGHT} {WIDTH}",
            f"{WIDTH} {HEIGHT} 2",
            f"{WIDTH} {HEIGHT + 1} 1",
            "1e3 48 1",
            "999999999999 999999999999 1",
            "9" * 5000,
            "40.0 48 1",
            "nan 48 1",
            "1 1 1",
            "2 960 1",
            " ".join("2" * 40),
            "a b c",
            f"{WIDTH * HEIGHT} 1 1",
        )
    ):
        wrong = size not in (f"{HEIGHT} {WIDTH}", "2 960 1")
        yield header(f"DimSize.{n}.{size[:14]}", "refuse" if wrong else "any", {"DimSize": size})
    for n, spacing in enumerate(
        ("0 0 0", "nan 1 1", "1 inf 1", "-1 1 1", "", "1", "x y z", "1e-300 1 1", "1e300 1 1", "1e400 1 1", "1,5 1,5 1")
    ):
        must = "refuse" if n not in (7, 8) else "any"
        yield header(f"ElementSpacing.{n}.{spacing[:9]}", must, {"ElementSpacing": spacing})
    yield header(
        "ElementSpacing.tiny with speckle",
        "any",
        {"ElementSpacing": "1e-9 1e-9 1"},
        changes={"source.acquisition.speckle": 0.5},
    )
    for kind in ("", "MET_FLOAT", "MET_LONG_LONG", "MET_USHORT", "object", "O", "MET_UCHAR_ARRAY", "V8"):
        yield header(f"ElementType.{kind}", "refuse", {"ElementType": kind})
    for name in (
        "",
        "LOCAL",
        "LIST",
        "/etc/passwd",
        "../patient0002/patient0002_2CH_ED.raw",
        "absent.raw",
        ".",
        "..",
        "a/b.raw",
        "x\0y",
        "n" * 4000,
        "patient0001_2CH_ED.mhd",
    ):
        yield header(f"ElementDataFile.{name[:12]!r}", "refuse", {"ElementDataFile": name})
    for n in (0, 1, len(raw) // 2, len(raw) - 1):
        yield header(f"raw.cut.{n}", "refuse", {}, raw[:n])
    yield header("raw.longer", "refuse", {}, raw + b"\0")
    packed = zlib.compress(raw)
    deflated = {"CompressedData": "True"}
    yield header("compressed.valid", "accept", deflated, packed)
    for n in (0, 1, len(packed) // 2, len(packed) - 1):
        yield header(f"compressed.cut.{n}", "refuse", deflated, packed[:n])
    for n in range(8):
        flipped = bytearray(packed)
        flipped[rng.randrange(len(packed))] ^= 1 << rng.randrange(8)
        yield header(f"compressed.bit.{n}", "any", deflated, bytes(flipped))
    yield header("compressed.bomb", "refuse", deflated, zlib.compress(bytes(1 << 28), 9))
    yield header(
        "compressed.bomb with its DimSize",
        "refuse",
        {**deflated, "DimSize": "65536 65536 1"},
        zlib.compress(bytes(1 << 28), 9),
    )
    yield header(
        "compressed.DimSize beyond an integer",
        "refuse",
        {**deflated, "DimSize": "9999999999999 9999999999999 1"},
        packed,
    )
    yield header("compressed.not", "refuse", deflated, raw)
    yield header("ascii pixels", "refuse", {"BinaryData": "False"})
    yield header("three channels", "refuse", {"ElementNumberOfChannels": "3"})
    yield header("four dimensions", "refuse", {"NDims": "4", "DimSize": f"{WIDTH} {HEIGHT} 1 2"}, raw * 2)
    for name, array in {
        "constant": np.zeros_like(image),
        "nan": np.full(image.shape, np.nan, np.float32),
        "inf": np.where(image > 100, np.inf, image).astype(np.float32),
        "negative": -image.astype(np.float32),
        "beyond 255": image.astype(np.float32) * 100,
    }.items():
        kind = "MET_UCHAR" if array.dtype == np.uint8 else "MET_FLOAT"
        yield header(f"pixels.{name}", "refuse", {"ElementType": kind}, array.tobytes())
    for name, data in {
        "empty": b"",
        "binary": rng.randbytes(500),
        "nul": bytes(200),
        "utf-16": mhd("x").encode("utf-16"),
        "no lines": b"x" * 100_000,
        "many lines": b"A = B\n" * 300_000,
        "pickle": malicious(),
        "no equals": b"DimSize 40 48 1\nElementType MET_UCHAR\nElementDataFile x.raw",
    }.items():
        yield make_input(f"header.{name}", "refuse", lambda place, data=data: place.write_bytes(data))
    for n in range(16):

        def noisy(place: Path, n: int = n, seed: int = rng.randrange(2**30)) -> None:
            local, data = random.Random(seed), bytearray(place.read_bytes())
            for _ in range(local.randint(1, 4)):
                data[local.randrange(len(data))] = local.randrange(32, 127)
            place.write_bytes(data)

        yield make_input(f"header.random.{n}", "any", noisy)
    for value in (4, 255):
        spoiled = label.copy()
        spoiled[0, 0] = value
        yield make_input(
            f"label.value.{value}",
            "refuse",
            lambda place, s=spoiled: place.with_name(f"{place.stem}_gt.raw").write_bytes(s.tobytes()),
        )
    yield make_input(
        "label.shape",
        "refuse",
        lambda place: (
            place.with_name(f"{place.stem}_gt.mhd").write_text(
                mhd(f"{place.stem}_gt", {"DimSize": f"{WIDTH} {HEIGHT - 1} 1"})
            ),
            place.with_name(f"{place.stem}_gt.raw").write_bytes(label[:-1].tobytes()),
        ),
    )
    for name, harm in {
        "image": lambda place: place.unlink(),
        "raw": lambda place: place.with_suffix(".raw").unlink(),
        "label": lambda place: place.with_name(f"{place.stem}_gt.mhd").unlink(),
    }.items():
        yield make_input(f"missing.{name}", "refuse", harm)

    def info(place: Path) -> None:
        for view in ("2CH", "4CH"):
            (place.parent / f"Info_{view}.cfg").write_bytes(rng.randbytes(100) + malicious())

    yield make_input("Info.cfg of noise, which nothing reads", "accept", info)

    def listing(text: bytes) -> Callable[[Path], object]:
        def write(place: Path) -> None:
            folder = place.parents[1] / "database_split"
            folder.mkdir()
            for name in ("training", "validation", "testing"):
                (folder / f"subgroup_{name}.txt").write_bytes(text)

        return write

    for name, text in {"binary": rng.randbytes(300), "one patient in all": b"patient0001\n"}.items():
        yield Input(
            f"camus/lists.{name}",
            lambda folder, t=text: (lambda p: (listing(t)(p[0]), p[1])[1])(camus(folder)),
            "refuse",
            ("subgroup", "database_split", "list"),
        )
