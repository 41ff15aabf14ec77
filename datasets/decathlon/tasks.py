"""The ten tasks of the Decathlon and their constants (docs/seat.md, Method 1), and phantoms of some of them."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ...common.checks import closest_choice
from .fingerprint import Fingerprint
from .plan import Plan, plan_of


@dataclass(frozen=True, eq=False)
class Task:
    """One task: what its images and labels are, and the constants of its training cases."""

    name: str
    """Of its folder, such as Task04_Hippocampus; of a phantom that comes from no task, a word."""
    modality: Literal["CT", "MR"]
    channels: tuple[str, ...]
    """Name of each channel of an image."""
    classes: tuple[str, ...]
    """Name of each label value; 0 is the background."""
    fingerprint: Fingerprint
    """The published constants; of a phantom, measured ones."""
    batch: int
    """Patches of one gradient step."""

    @property
    def title(self) -> str:
        """The name without its number: Hippocampus."""
        return self.name.partition("_")[2] or self.name

    @property
    def number(self) -> int | None:
        """From 1; None of a phantom that comes from no task."""
        return int(self.name[4:6]) if "_" in self.name else None

    @property
    def ct(self) -> bool:
        """Whether intensities are HU."""
        return self.modality == "CT"

    @cached_property
    def plan(self) -> Plan:
        """The sizes of patches and the strides that the planner gives."""
        known = self.fingerprint
        return plan_of(known.mean_size, known.small_size, known.small_volume, self.batch)


def find_task(task: int | str, *, phantom: bool = False) -> Task:
    """A task by its number, its name or its folder's name, in any case: 4, "hippocampus" or "Task04_Hippocampus".

    phantom: the phantom of that task, whose constants are its own.

    Raises:
        ValueError: no such task, or one without a phantom.
    """
    table = PHANTOM_TASKS if phantom else TASKS
    wanted = str(task).lower()
    for one in table.values():
        if wanted in (one.name.lower(), one.title.lower(), str(one.number)):
            return one
    known = [one.title for one in table.values()]
    if phantom and wanted.isdigit() | any(wanted in one.name.lower() for one in TASKS.values()):
        raise ValueError(
            f"task is {task!r}, of which there is no phantom; there are phantoms of {', '.join(known)}: choose one, or "
            "give data the folder of the task"
        )
    listed = (
        ", ".join(f"{number} {title}" for number, title in enumerate(known, 1)) if not phantom else ", ".join(known)
    )
    raise ValueError(f"task is {task!r} but must be one of {listed}{closest_choice(str(task), known)}")


_CT: tuple[str, ...] = ("CT",)
_MR: tuple[str, ...] = ("MR",)
TASKS = {
    task.name: task
    for task in (
        Task(
            "Task01_BrainTumour",
            "MR",
            ("FLAIR", "T1w", "T1gd", "T2w"),
            ("background", "edema", "non-enhancing tumour", "enhancing tumour"),
            Fingerprint(
                spacing_mm=(1.0, 1.0, 1.0),
                window=((0.033742, 0.706220), (0.020534, 0.574874), (0.022222, 0.757405), (0.058455, 0.911656)),
                mean=(0.298623, 0.257875, 0.268053, 0.297447),
                std=(0.222359, 0.222430, 0.222417, 0.222493),
                mean_size=(240, 240, 155),
                small_size=(35, 44, 38),
                small_volume=16165,
            ),
            batch=3,
        ),
        Task(
            "Task02_Heart",
            "MR",
            _MR,
            ("background", "left atrium"),
            Fingerprint(
                spacing_mm=(1.25, 1.25, 1.37),
                window=((0.310764, 0.757727),),
                mean=(0.549115,),
                std=(0.094617,),
                mean_size=(320, 320, 115),
                small_size=(41, 58, 68),
                small_volume=46751,
            ),
            batch=2,
        ),
        Task(
            "Task03_Liver",
            "CT",
            _CT,
            ("background", "liver", "cancer"),
            Fingerprint(
                spacing_mm=(0.767578, 0.767578, 1.0),
                window=((-45, 202),),
                mean=(98.3142,),
                std=(37.0933,),
                mean_size=(512, 512, 160),
                small_size=(73, 70, 42),
                small_volume=365130,
            ),
            batch=2,
        ),
        Task(
            "Task04_Hippocampus",
            "MR",
            _MR,
            ("background", "anterior", "posterior"),
            Fingerprint(
                spacing_mm=(1.0, 1.0, 1.0),
                window=((0.056961, 0.585034),),
                mean=(0.207928,),
                std=(0.093710,),
                mean_size=(35, 50, 36),
                small_size=(19, 23, 20),
                small_volume=1580,
            ),
            batch=22,
        ),
        Task(
            "Task05_Prostate",
            "MR",
            ("T2", "ADC"),
            ("background", "peripheral zone", "transition zone"),
            Fingerprint(
                spacing_mm=(0.625, 0.625, 3.6),
                window=((0.026180, 0.291209), (0.0, 0.773200)),
                mean=(0.110603, 0.426442),
                std=(0.123702, 0.124319),
                mean_size=(320, 320, 20),
                small_size=(87, 57, 10),
                small_volume=13444,
            ),
            batch=13,
        ),
        Task(
            "Task06_Lung",
            "CT",
            _CT,
            ("background", "cancer"),
            Fingerprint(
                spacing_mm=(0.785156, 0.785156, 1.24498),
                window=((-1024, 327),),
                mean=(-149.248,),
                std=(309.025,),
                mean_size=(512, 512, 160),
                small_size=(45, 47, 24),
                small_volume=28660,
            ),
            batch=2,
        ),
        Task(
            "Task07_Pancreas",
            "CT",
            _CT,
            ("background", "pancreas", "cancer"),
            Fingerprint(
                spacing_mm=(0.803711, 0.803711, 2.5),
                window=((-99, 218),),
                mean=(75.8792,),
                std=(54.4776,),
                mean_size=(512, 512, 95.5),
                small_size=(34, 31, 10),
                small_volume=7992,
            ),
            batch=3,
        ),
        Task(
            "Task08_HepaticVessel",
            "CT",
            _CT,
            ("background", "vessel", "tumour"),
            Fingerprint(
                spacing_mm=(0.798828, 0.798828, 5.0),
                window=((-6, 268),),
                mean=(104.069,),
                std=(50.1045,),
                mean_size=(512, 512, 45),
                small_size=(87, 75, 15),
                small_volume=6368,
            ),
            batch=5,
        ),
        Task(
            "Task09_Spleen",
            "CT",
            _CT,
            ("background", "spleen"),
            Fingerprint(
                spacing_mm=(0.792969, 0.792969, 5.0),
                window=((-40, 176),),
                mean=(98.6877,),
                std=(36.5853,),
                mean_size=(512, 512, 60),
                small_size=(121, 120, 18),
                small_volume=77158,
            ),
            batch=5,
        ),
        Task(
            "Task10_Colon",
            "CT",
            _CT,
            ("background", "colon cancer primaries"),
            Fingerprint(
                spacing_mm=(0.78125, 0.78125, 5.0),
                window=((-31, 165),),
                mean=(64.4795,),
                std=(30.2045,),
                mean_size=(512, 512, 90),
                small_size=(62, 61, 9),
                small_volume=11750,
            ),
            batch=3,
        ),
    )
}
"""The ten tasks by the name of their folder."""

PHANTOM_TASKS = {
    task.name: task
    for task in (
        Task(
            "Task01_BrainTumour",
            "MR",
            TASKS["Task01_BrainTumour"].channels,
            TASKS["Task01_BrainTumour"].classes,
            Fingerprint(
                spacing_mm=(1.0, 1.0, 1.0),
                window=((0.408, 0.921), (0.154, 0.745), (0.160, 0.952), (0.383, 0.919)),
                mean=(0.700, 0.499, 0.531, 0.647),
                std=(0.095, 0.100, 0.136, 0.088),
                mean_size=(48, 48, 40),
                small_size=(7, 7, 7),
                small_volume=250,
            ),
            batch=4,
        ),
        Task(
            "Task04_Hippocampus",
            "MR",
            _MR,
            TASKS["Task04_Hippocampus"].classes,
            Fingerprint(
                spacing_mm=(1.0, 1.0, 1.0),
                window=((0.133, 0.653),),
                mean=(0.371,),
                std=(0.106,),
                mean_size=(37, 50, 36),
                small_size=(14, 21, 13),
                small_volume=1238,
            ),
            batch=8,
        ),
        Task(
            "Toy",
            "MR",
            _MR,
            ("background", "ball"),
            Fingerprint(
                spacing_mm=(1.0, 1.0, 1.0),
                window=((0.361, 0.984),),
                mean=(0.660,),
                std=(0.120,),
                mean_size=(16, 16, 16),
                small_size=(8, 8, 8),
                small_volume=258,
            ),
            batch=8,
        ),
    )
}
"""Tasks whose volumes are procedural, by name; their constants are measured on the first 50 phantoms."""
