"""Picture of a matrix of win rates: the learner at several moments against its opponents."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .drawing import Bytes

LETTERED = 12
"""Largest number of columns in whose cells the rates are written."""


def win_rate_picture(rates: npt.NDArray[np.floating], learners: Sequence[int], opponents: Sequence[int]) -> Bytes:
    """The matrix as a picture, uint8 [H, W, 3]: red where the learner loses, white at one half, blue where it wins.

    Args:
        rates: win rate of each learner (row) against each opponent (column), in [0, 1]; NaN where they never met.
        learners: environment steps of the rows.
        opponents: environment steps of the columns.

    Raises:
        ValueError: a matrix of another shape, or a rate outside [0, 1].
    """
    if rates.shape != (len(learners), len(opponents)):
        raise ValueError(f"rates are {rates.shape} but must be {(len(learners), len(opponents))}")
    if not ((rates >= 0) & (rates <= 1) | np.isnan(rates)).all():
        raise ValueError(f"rates lie in [{np.nanmin(rates)}, {np.nanmax(rates)}] but must lie in [0, 1]")
    size = (2.5 + 0.45 * len(opponents), 1.6 + 0.4 * len(learners))
    figure = Figure(figsize=size, dpi=80, layout="constrained")
    canvas, axes = FigureCanvasAgg(figure), figure.add_subplot()
    image = axes.imshow(rates, cmap="RdBu", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    axes.set_facecolor("0.6")  # NaN is transparent
    axes.set_xticks(range(len(opponents)), [f"{step:,}" for step in opponents], rotation=90)
    axes.set_yticks(range(len(learners)), [f"{step:,}" for step in learners])
    axes.set(xlabel="opponent, of step", ylabel="learner, at step")
    if len(opponents) <= LETTERED:
        for (row, column), rate in np.ndenumerate(rates):
            if np.isfinite(rate):
                axes.text(column, row, f"{100 * rate:.0f}", ha="center", va="center", fontsize=7)
    figure.colorbar(image, ax=axes, label="win rate")
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()  # type: ignore[no-untyped-call]
