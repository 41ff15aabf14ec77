"""The images of a run: photographs, or axial slices of liver CTs (docs/rp-pgd.md, Method 14)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from ...datasets.images import ImagePool
from ...datasets.liver.cases import liver_case_ids
from ...datasets.liver.divisions import SPLIT_RATIOS
from ...datasets.liver.slices import load_slices
from ...datasets.sample import BadSample
from ...datasets.scenes.files import Scene
from ...datasets.scenes.images import Scenes, load_scenes
from ...datasets.selection import SelectionError, patient_of, setting
from .config import RPPGDExperiment


@dataclass(frozen=True, eq=False)
class SliceScenes(Scenes):
    """Slices, which are in memory, as scenes of one size; a group is a patient."""

    slices: ImagePool
    """All of them, in grey."""
    channels: ClassVar[int] = 1

    @property
    def side(self) -> int | None:
        """Height and width of all of them in pixels; None: these differ."""
        height, width = self.slices.images.shape[2:]
        return int(height) if height == width else None

    def pool(self, on_bad: Callable[[BadSample], object] | None = None) -> ImagePool:
        """The slices as they are."""
        rows = {name: row for row, name in enumerate(self.slices.ids)}
        return self.slices.take([rows[name] for name in self.ids])


def load_images(
    experiment: RPPGDExperiment, split: str, option: str = "", on_bad: Callable[[BadSample], object] | None = None
) -> Scenes:
    """The images of one split.

    Args:
        experiment: has `data`, or `liver`.
        split: of the photographs, or of the CTs.
        option: where the fields that name splits begin on the command line; errors then say what to write there.
        on_bad: by default a bad CT raises. Otherwise it is logged, handed to `on_bad` and left out.

    Raises:
        FileNotFoundError, ValueError: as `load_scenes`, or as `load_slices`.
    """
    if experiment.liver is None:
        return load_scenes(experiment.data, split, option)
    config = replace(experiment.liver, split=split)
    try:
        liver_case_ids(config, option)
    except SelectionError as error:  # a run's CTs are chosen by splits alone
        other = setting(option, "split", next(iter(SPLIT_RATIOS)))
        raise ValueError(f"{error.reason}; choose one of these, such as {other}") from error
    pool = load_slices(config, config.slices, on_bad)
    rows = {name: row for row, name in enumerate(pool.ids)}

    def load(name: str) -> Scene:
        row = rows[name]
        return Scene(name, pool.images[row], None if pool.labels is None else pool.labels[row])

    groups = [patient_of(case, config.patient_pattern) for case in pool.groups]
    return SliceScenes(pool.ids, groups, pool.classes, pool.origin, load, experiment.data, pool)
