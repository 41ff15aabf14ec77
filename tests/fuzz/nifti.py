"""3-D NIfTI: images and labels of a Decathlon folder."""

import gzip
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np

from .harness import Input
from .parts import SHAPE, decathlon, malicious, nifti_bytes, volume

# name: (offset, struct format, hostile values); of the header of NIfTI-1
HEADER: dict[str, tuple[int, str, list]] = {
    "sizeof_hdr": (0, "<i", [0, 1, 540, -1, 2**31 - 1]),
    "dim0": (40, "<h", [0, 1, 2, 4, 5, 7, 8, -1, 32767, -32768]),
    "dim1": (42, "<h", [0, 1, -1, 19, 21, 32767]),
    "dim2": (44, "<h", [0, -1, 32767]),
    "dim3": (46, "<h", [0, 1, -5, 11, 13, 32767]),
    "dim4": (48, "<h", [0, 2, -1, 32767]),
    "datatype": (70, "<h", [0, 1, 2, 4, 8, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 1792, 2048, 2304, 9999, -1]),
    "bitpix": (72, "<h", [0, 1, 8, 64, -32, 32767]),
    "pixdim0": (76, "<f", [0.0, 2.0, float("nan"), -7.0]),
    "pixdim1": (80, "<f", [0.0, float("nan"), float("inf"), -1.5, 1e30, 1e-30]),
    "pixdim3": (88, "<f", [0.0, float("nan"), float("inf"), -2.0, 1e38]),
    "vox_offset": (108, "<f", [0.0, 1.0, 100.0, 353.0, 360.0, 1e9, 1e30, -352.0, float("nan"), float("inf")]),
    "scl_slope": (112, "<f", [float("nan"), float("inf"), -float("inf"), 1e38, -1.0, 1e-45]),
    "scl_inter": (116, "<f", [float("nan"), float("inf"), 1e38, -3e38]),
    "xyzt_units": (123, "<B", [0, 255]),
    "qform_code": (252, "<h", [-1, 9, 32767]),
    "sform_code": (254, "<h", [0, -1, 9, 32767]),
    "quatern_b": (256, "<f", [float("nan"), float("inf"), 2.0, -1e30]),
    "qoffset_x": (268, "<f", [float("nan"), float("inf"), 1e38]),
    "srow_x0": (280, "<f", [0.0, float("nan"), float("inf"), 1e30, 1e-30, -1.5]),
    "srow_x3": (292, "<f", [float("nan"), float("inf"), -3e38]),
    "srow_z2": (320, "<f", [0.0, float("nan"), -float("inf"), 1e30]),
    "magic": (344, "4s", [b"", b"ni1\0", b"n+2\0", b"\xff\xff\xff\xff"]),
    "extension": (348, "<B", [1, 255]),
}
# those that leave no 3-D volume of the stored voxels, whatever a reader makes of them
WRONG = {
    "dim0": [0, 1, 2, 4, 5, 7, 8, -1, 32767, -32768],
    "dim1": [0, -1, 21, 32767],
    "dim2": [0, -1, 32767],
    "dim3": [0, -5, 13, 32767],
    "dim4": [],
    "datatype": [0, 1, 32, 128, 1792, 2048, 2304, 9999, -1],
    "vox_offset": [1e9, 1e30],
    "srow_x0": [0.0],
    "srow_x3": [],
    "srow_z2": [0.0],
    "magic": [b"", b"\xff\xff\xff\xff"],
}


def patched(data: bytes, offset: int, form: str, value: object) -> bytes:
    piece = struct.pack(form, value)
    return data[:offset] + piece + data[offset + len(piece) :]


def gz_bomb(head: bytes, member_mib: int, members: int) -> bytes:
    """A gzip file that unpacks to `head` and then zeros, MiB x members, from one member repeated."""
    return gzip.compress(head, mtime=0) + gzip.compress(bytes(member_mib << 20), 9, mtime=0) * members


def inputs(rng: random.Random) -> Iterator[Input]:
    image, label = volume()
    plain, mask = nifti_bytes(image), nifti_bytes(label)
    packed, packed_mask = gzip.compress(plain, mtime=0), gzip.compress(mask, mtime=0)
    here = ("liver_0.nii", "label_0.nii")

    def make_input(name: str, must: str = "any", **given: object) -> Input:
        return Input(f"nifti/{name}", lambda folder: decathlon(folder, **given), must, here)

    yield make_input("valid", "accept")
    yield make_input("valid.gz", "accept", image=packed, label=packed_mask, suffix=".nii.gz")
    for n in sorted({0, 1, 100, 347, 348, 351, 352, 353, len(plain) - 1, *rng.sample(range(353, len(plain) - 1), 12)}):
        yield make_input(f"image.cut.{n}", "refuse", image=plain[:n])
    for n in sorted({0, 348, len(mask) - 1, *rng.sample(range(353, len(mask) - 1), 6)}):
        yield make_input(f"label.cut.{n}", "refuse", label=mask[:n])
    for n in sorted({0, 1, 9, 10, 18, len(packed) - 1, len(packed) - 8, *rng.sample(range(20, len(packed) - 9), 10)}):
        yield make_input(f"gz.cut.{n}", "refuse", image=packed[:n], label=packed_mask, suffix=".nii.gz")
    for n in range(24):
        at = rng.randrange(18, len(packed))
        flipped = bytearray(packed)
        flipped[at] ^= 1 << rng.randrange(8)
        yield make_input(f"gz.bit.{n}", "refuse", image=bytes(flipped), label=packed_mask, suffix=".nii.gz")
    for n in range(16):
        at = rng.randrange(len(packed_mask) - 8, len(packed_mask))
        flipped = bytearray(packed_mask)
        flipped[at] ^= 1 << rng.randrange(8)
        yield make_input(f"gz.label.bit.{n}", "refuse", image=packed, label=bytes(flipped), suffix=".nii.gz")
    for name, (offset, form, values) in HEADER.items():
        for value in values:
            must = "refuse" if value in WRONG.get(name, []) else "any"
            yield make_input(f"header.{name}.{value!r}", must, image=patched(plain, offset, form, value))
    for name in ("dim0", "dim1", "datatype", "vox_offset", "srow_x0", "pixdim1", "scl_slope"):
        offset, form, values = HEADER[name]
        for value in values[-2:]:
            data = gzip.compress(patched(mask, offset, form, value), mtime=0)
            yield make_input(f"gz.label.header.{name}.{value!r}", image=packed, label=data, suffix=".nii.gz")
    for n in range(24):
        noisy = bytearray(plain)
        for _ in range(rng.randint(1, 8)):
            noisy[rng.randrange(348)] = rng.randrange(256)
        yield make_input(f"header.random.{n}", image=bytes(noisy))
    bad = {"nan": np.nan, "inf": np.inf, "-inf": -np.inf}
    for name, value in bad.items():
        spoiled = image.copy()
        spoiled[3, 3, 3] = value
        yield make_input(f"voxel.{name}", "refuse", image=nifti_bytes(spoiled))
    yield make_input("voxel.constant", "refuse", image=nifti_bytes(np.zeros(SHAPE, np.float32)))
    yield make_input("voxel.beyond float32", "refuse", image=nifti_bytes(np.full(SHAPE, 1e300) * rng.random()))
    one = image.astype(np.float64)
    one[1, 1, 1] = 1e300
    yield make_input("voxel.one beyond float32", "refuse", image=nifti_bytes(one))
    yield make_input("voxel.complex", "refuse", image=nifti_bytes(image.astype(np.complex64) * (1 + 1j)))
    yield make_input("label.complex", "refuse", label=nifti_bytes(label.astype(np.complex64)))
    rgb = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    yield make_input("voxel.rgb", "refuse", image=nifti_bytes(rgb))
    yield make_input("label.rgb", "refuse", label=nifti_bytes(rgb))
    for shape in [(20,), (20, 18), (20, 18, 12, 2), (20, 18, 12, 1, 3), (20, 18, 12, 1), (20, 18, 1), (1, 1, 1)]:
        data = np.resize(image, shape).astype(np.float32)
        must = "any" if shape in [(20, 18, 12, 1), (20, 18, 1)] else "refuse"
        yield make_input(f"shape.{'x'.join(map(str, shape))}", must, image=nifti_bytes(data))
    for name, value in {"3": 3, "255": 255, "-1": -1, "1.5": 1.5, "nan": np.nan, "1e30": 1e30, "2.49": 2.49}.items():
        spoiled = label.astype(np.float32)
        spoiled[0, 0, 0] = value
        yield make_input(f"label.value.{name}", "any" if name == "2.49" else "refuse", label=nifti_bytes(spoiled))
    yield make_input("label.shape", "refuse", label=nifti_bytes(label[:-1]))
    yield make_input("label.turned", "refuse", label=nifti_bytes(label.transpose(1, 0, 2)))
    yield make_input(
        "label.moved",
        "refuse",
        label=nifti_bytes(label, np.array([[1.5, 0, 0, 30], [0, 1.5, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]], float)),
    )
    for name, affine in {
        "zero": np.zeros((4, 4)),
        "plane": np.diag([1.5, 1.5, 0, 1]),
        "nan": np.full((4, 4), np.nan),
        "nearly a plane": np.diag([1.5, 1.5, 1e-12, 1.0]),
        "huge": np.diag([1e20, 1e20, 1e20, 1.0]),
        "sheared": np.array([[1, 1, 1, 0], [0, 1e-9, 1, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float),
    }.items():
        must = "refuse" if name in ("zero", "plane", "nan") else "any"
        for grid in ("fixed_shape", "spacing"):
            yield make_input(
                f"affine.{name}.{grid}",
                must,
                image=nifti_bytes(image, affine),
                label=nifti_bytes(label, affine),
                changes={"env.grid": grid},
            )
    for size in (1e-6, 1e3, 1e6, 1e18):
        affine = np.diag([size, size, size, 1.0])
        yield make_input(
            f"voxel size.{size:g}",
            image=nifti_bytes(image, affine),
            label=nifti_bytes(label, affine),
            changes={"env.grid": "spacing"},
        )
    for name, dims, datatype, bits in [
        ("int16", (32767, 32767, 32767), 4, 16),
        ("float64", (32767, 32767, 32767), 64, 64),
        ("2 GiB", (1024, 1024, 512), 16, 32),
        ("16 GiB", (2048, 2048, 1024), 16, 32),
    ]:
        head = bytearray(plain[:352])
        struct.pack_into("<4h", head, 40, 3, *dims)
        struct.pack_into("<2h", head, 70, datatype, bits)
        yield make_input(f"dimension bomb.{name}", "refuse", image=bytes(head) + bytes(64))
        data = gzip.compress(bytes(head) + bytes(64), mtime=0)
        yield make_input(f"dimension bomb.gz.{name}", "refuse", image=data, label=packed_mask, suffix=".nii.gz")
    for mib in (512, 6144):
        yield make_input(
            f"gz bomb.{mib} MiB",
            "refuse" if mib > 1024 else "any",
            image=gz_bomb(plain, 64, mib // 64),
            label=packed_mask,
            suffix=".nii.gz",
        )
    yield make_input("gz bomb.label", "refuse", image=packed, label=gz_bomb(mask, 64, 96), suffix=".nii.gz")
    for name, data in {
        "empty": b"",
        "text": b"hello\n" * 100,
        "png": b"\x89PNG\r\n\x1a\n" + bytes(400),
        "pickle": malicious(),
        "zip": b"PK\x03\x04" + bytes(500),
        "zeros": bytes(5000),
        "noise": rng.randbytes(5000),
        "nifti2": nifti_bytes(image, kind=nib.Nifti2Image)[:-1],
        "analyze": nib.Nifti1Pair(image, np.eye(4)).header.binaryblock,
        "mgh": nib.MGHImage(image, np.eye(4)).to_bytes(),
    }.items():
        for suffix in (".nii", ".nii.gz"):
            yield make_input(
                f"not nifti.{name}{suffix}",
                "refuse",
                image=data,
                label=mask if suffix == ".nii" else packed_mask,
                suffix=suffix,
            )

    def special(kind: str) -> Callable[[Path], list[str]]:
        def make(folder: Path) -> list[str]:
            arguments = decathlon(folder)
            place = folder / "data" / "liver_0.nii"
            place.unlink()
            if kind == "folder":
                place.mkdir()
            elif kind == "fifo":
                os.mkfifo(place)
            elif kind == "loop":
                place.symlink_to("liver_0.nii")
            elif kind == "device":
                place.symlink_to("/dev/zero")
            elif kind == "dangling":
                place.symlink_to("nowhere.nii")
            return arguments

        return make

    for kind in ("folder", "fifo", "loop", "device", "dangling", "missing"):
        yield Input(f"nifti/special.{kind}", special(kind), "refuse", here)
