"""dataset.json of a Decathlon folder."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

from .harness import Input
from .parts import decathlon, nifti_bytes, volume


def inputs(rng: random.Random) -> Iterator[Input]:
    pair = {"image": "liver_0.nii", "label": "label_0.nii"}
    valid = json.dumps({"training": [pair]})

    def make_input(name: str, listing: object, must: str = "refuse", **given: object) -> Input:
        data = (
            listing
            if isinstance(listing, bytes)
            else listing.encode()
            if isinstance(listing, str)
            else json.dumps(listing).encode()
        )
        return Input(
            f"dataset/{name}",
            lambda folder: decathlon(folder, listing=data, **given),
            must,
            ("dataset.json", "liver_", "data"),
        )

    for name, text in {
        "empty": "",
        "null": "null",
        "number": "5",
        "string": '"x"',
        "list": "[]",
        "object": "{}",
        "open": "{",
        "nan": "NaN",
        "training null": '{"training": null}',
        "training number": '{"training": 3}',
        "training string": '{"training": "liver_0.nii"}',
        "training empty": '{"training": []}',
        "training object": '{"training": {"image": "a"}}',
        "entry null": '{"training": [null]}',
        "entry number": '{"training": [1]}',
        "entry string": '{"training": ["liver_0.nii"]}',
        "entry list": '{"training": [["a", "b"]]}',
        "no image": '{"training": [{"label": "label_0.nii"}]}',
        "no label": '{"training": [{"image": "liver_0.nii"}]}',
        "image null": '{"training": [{"image": null, "label": "x"}]}',
        "image number": '{"training": [{"image": 5, "label": 6}]}',
        "image empty": '{"training": [{"image": "", "label": ""}]}',
        "image list": '{"training": [{"image": ["liver_0.nii"], "label": "label_0.nii"}]}',
        "test number": '{"training": [], "test": 5}',
        "test string": '{"training": [], "test": "abc"}',
        "test null": '{"training": [], "test": null}',
        "comma": valid[:-1] + ",}",
        "comment": "// x\n" + valid,
        "twice": valid + valid,
        "deep list": "[" * 100_000,
        "deep object": '{"a":' * 100_000,
        "deep training": '{"training": ' + "[" * 50_000 + "]" * 50_000 + "}",
        "long number": '{"training": ' + "9" * 100_000 + "}",
    }.items():
        yield make_input(name, text)
    yield make_input("utf-16", valid.encode("utf-16"))
    yield make_input("latin-1", valid.replace("liver", "livér").encode("latin-1"))
    yield make_input("bom", b"\xef\xbb\xbf" + valid.encode(), "any")
    yield make_input("zeros", bytes(100))
    for n in range(12):
        data = bytearray(valid.encode())
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        yield make_input(f"random.{n}", bytes(data), "any")
    for name, image in {
        "absent": "nope.nii",
        "folder": ".",
        "parent": "..",
        "nul": "liver_0\0.nii",
        "long": "a" * 5000 + ".nii",
        "deep": "a/" * 3000 + "x.nii",
        "device": "/dev/null",
        "zero device": "/dev/zero",
        "itself": "dataset.json",
        "not nifti": "../config.yaml",
    }.items():
        yield make_input(f"image {name}", {"training": [{"image": image, "label": "label_0.nii"}]})
    yield make_input("label absent", {"training": [{**pair, "label": "nope.nii"}]})
    yield make_input("label null", {"training": [{**pair, "label": None}]})
    yield make_input("label itself the image", {"training": [{**pair, "label": "liver_0.nii"}]})
    yield make_input("hidden", {"training": [{**pair, "image": "._liver_0.nii"}]})
    yield make_input("nan key", '{"training": [{"image": NaN, "label": NaN}]}')
    yield make_input("case twice", {"training": [pair, pair]}, "any")

    def two_of_a_name(folder: Path) -> list[str]:
        other = {"image": "b/liver_0.nii", "label": "label_0.nii"}
        arguments = decathlon(folder, listing=json.dumps({"training": [pair, other]}).encode())
        (folder / "data" / "b").mkdir()
        (folder / "data" / "b" / "liver_0.nii").write_bytes(nifti_bytes(volume(1)[0]))
        return arguments

    yield Input("dataset/two cases of one id", two_of_a_name, "refuse", ("liver_0",))

    def outside(how: str) -> Callable[[Path], list[str]]:
        def make(folder: Path) -> list[str]:
            target = folder / "elsewhere"
            target.mkdir()
            (target / "liver_0.nii").write_bytes(nifti_bytes(volume(1)[0]))
            name = {"up": "../elsewhere/liver_0.nii", "absolute": str(target / "liver_0.nii"), "link": "link.nii"}[how]
            arguments = decathlon(
                folder,
                listing=json.dumps({"training": [{**pair, "image": name}]}).encode(),
                changes={f"{part}.cases": ["*"] for part in ("env", "validation", "test")},
            )
            (folder / "data" / "link.nii").symlink_to(target / "liver_0.nii")
            return arguments

        return make

    for how in ("up", "absolute"):
        yield Input(f"dataset/outside.{how}", outside(how), "refuse", ("dataset.json",))
    yield Input("dataset/outside.link", outside("link"), "any", ("dataset.json",))
    many = {"training": [{"image": f"x/liver_{n}.nii", "label": ""} for n in range(200_000)]}
    yield make_input("200000 entries that are absent", many)
