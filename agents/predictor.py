"""What a paper fills in for `predict`: one method of a run, loaded once, for images without labels."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..attacks.victim import Normalized
from ..common.runs import Run
from ..datasets.readers import ImageFiles

POLICY = "policy"
"""Name by which `predict` knows the trained policy of a run."""


@dataclass(frozen=True)
class PredictOptions:
    """What of a run predicts, and how."""

    method: str | None = None
    """The trained policy (`POLICY`), a reference policy or a baseline of the run, by name; None: the paper's choice."""
    threshold: float | None = None
    """θ: a voxel whose map exceeds it belongs to the mask; None: as the run's validation cases say."""
    spacing_mm: tuple[float, float] | None = None
    """(y, x) of a pixel of images whose files do not say it."""


@dataclass(frozen=True)
class Predicted:
    """What was predicted of one image."""

    files: dict[str, Path]
    """What was written, by kind: mask, score or doubt, picture."""
    facts: dict[str, Any]
    """Numbers and texts for the table of predictions, as JSON has them."""


class Predictor(Protocol):
    """One method of a run with all that it needs, loaded once, for any image."""

    @property
    def settings(self) -> Mapping[str, Any]:
        """All that the predictions depend on, as JSON, but the images."""

    @property
    def notes(self) -> Sequence[str]:
        """What the user should know beforehand, a line each."""

    def find(self, inputs: Sequence[str | Path]) -> list[ImageFiles]:
        """The images that the inputs name: files, folders or patterns."""

    def predict(self, files: ImageFiles, folder: Path) -> Predicted:
        """Segment one image, and write what comes of it into `folder`.

        Raises:
            ValueError, FileNotFoundError: an image that cannot be read or segmented.
        """


def no_predictor(run: Run, experiment: Any, options: PredictOptions) -> Predictor:
    """Raises ValueError: a paper without masks."""
    raise ValueError(
        f"{str(run.folder)!r} is a run of paper {experiment.paper!r}, which has no masks to predict; `predict` is for "
        f"the papers that segment, spars, rl4seg and seat"
    )


def no_victim(run: Run, experiment: Any) -> tuple[Normalized, tuple[str, ...]]:
    """Raises ValueError: a paper that trains no segmenter to attack."""
    raise ValueError(
        f"{str(run.folder)!r} is a run of paper {experiment.paper!r}, which leaves no victim to attack; name a run of "
        f"rp_pgd, or a file of save_victim"
    )
