"""Lists and pictures of MURA, and a table of hips."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

from segarena.datasets.xray.images import XrayConfig, load_xrays
from xray_toys import fake_hips, fake_mura

from .harness import Input
from .parts import malicious

IMAGES, STUDIES = "train_image_paths.csv", "train_labeled_studies.csv"
STUDY = "MURA-v1.1/train/XR_ELBOW/patient00001/study1_negative"


def inputs(rng: random.Random) -> Iterator[Input]:
    yield Input("xray/mura", _mura(IMAGES, lambda whole: whole), "accept")
    yield Input("xray/table", _table(lambda whole: whole), "accept")
    noise = rng.randbytes(300)
    spoiled: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda whole: b"",
        "blank": lambda whole: b"\n \n\n",
        "header": lambda whole: b"path,label\n" + whole,
        "half": lambda whole: whole[: len(whole) // 2],
        "utf-16": lambda whole: whole.decode().encode("utf-16"),
        "nul": lambda whole: whole.replace(b"train", b"tr\0in"),
        "zeros": lambda whole: bytes(100),
        "long": lambda whole: whole + b"x" * 200_000,
        "noise": lambda whole: noise,
        "pickle": lambda whole: malicious(),
        "twice": lambda whole: whole + whole,
    }
    for name, change in spoiled.items():
        for table in (IMAGES, STUDIES):
            yield Input(f"xray/{table[:-4]} {name}", _mura(table, change), "refuse", (table, STUDIES))
        yield Input(f"xray/table {name}", _table(change), "refuse", ("labels.csv",))
    for name, line in {
        "up": "MURA-v1.1/train/XR_ELBOW/patient00001/../../x.png",
        "absolute": "/etc/passwd",
        "folder": f"{STUDY}/",
        "no study": "MURA-v1.1/train/XR_ELBOW/patient00001/image1.png",
        "missing": f"{STUDY}/image9.png",
        "long name": f"{STUDY}/{'n' * 4000}.png",
        "device": "/dev/zero",
    }.items():
        yield Input(f"xray/path {name}", _mura(IMAGES, _with(line)), "refuse", (IMAGES,))
    for name, line in {
        "label 2": f"{STUDY}/,2",
        "label nan": f"{STUDY}/,nan",
        "other label": f"{STUDY}/,1",
        "no label": STUDY,
        "of no image": "MURA-v1.1/train/XR_ELBOW/patient00077/study1_negative/,0",
    }.items():
        yield Input(f"xray/study {name}", _mura(STUDIES, _with(line)), "refuse", (STUDIES,))
    for name, row in {
        "label": "x.png,6,g,train",
        "huge label": f"x.png,{'9' * 5000},g,train",
        "letters": "x.png,one,g,train",
        "up": "../x.png,1,g,train",
        "absolute": "/etc/passwd,1,g,train",
        "missing": "nope.png,1,g,train",
        "short": "x.png",
        "quote": '"x.png,1,g,train',
        "group twice": "x.png,1,patient_val_0_0,train",
        "nul": "x\0.png,1,g,train",
        "folder": ".,1,g,train",
    }.items():
        yield Input(f"xray/row {name}", _table(_with(row)), "refuse", ("labels.csv",))
    for name, content in {
        "empty": b"",
        "text": b"x" * 1000,
        "noise": rng.randbytes(3000),
        "pickle": malicious(),
        "head": b"\x89PNG\r\n\x1a\n" + bytes(40),
    }.items():
        yield Input(f"xray/picture {name}", _picture(content), "refuse", (IMAGES,))
    for n in range(8):
        seed = rng.randrange(2**30)
        yield Input(f"xray/list random.{n}", _mura((IMAGES, STUDIES)[n % 2], _noisy(seed)), "any", ("train_", "data"))
        yield Input(f"xray/table random.{n}", _table(_noisy(seed)), "any", ("labels.csv", "data"))


def _with(line: str) -> Callable[[bytes], bytes]:
    """The same, and one line more."""
    return lambda whole: whole + line.encode() + b"\n"


def _noisy(seed: int) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        local, data = random.Random(seed), bytearray(whole)
        for _ in range(local.randint(1, 3)):
            data[local.randrange(len(data))] = local.randrange(256)
        return bytes(data)

    return change


def _mura(table: str, change: Callable[[bytes], bytes]) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        path = fake_mura(folder) / table
        path.write_bytes(change(path.read_bytes()))
        return _load(XrayConfig(data=str(folder), protocol="paper", size=32))

    return make


def _table(change: Callable[[bytes], bytes]) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        path = fake_hips(folder)
        path.write_bytes(change(path.read_bytes()))
        return _load(XrayConfig(csv=str(path), size=32))

    return make


def _picture(content: bytes) -> Callable[[Path], Callable[[], object]]:
    def make(folder: Path) -> Callable[[], object]:
        fake_mura(folder)
        (folder / STUDY / "image1.png").write_bytes(content)
        return _load(XrayConfig(data=str(folder), protocol="paper", size=32))

    return make


def _load(config: XrayConfig) -> Callable[[], object]:
    return lambda: load_xrays(config, "train")
