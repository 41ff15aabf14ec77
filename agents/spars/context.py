"""What the trained baselines of one SPARS run share (docs/spars.md, Method 12)."""

from dataclasses import fields

from ...datasets.liver.cases import HU_WINDOW, LiverCase, LiverDataConfig, load_liver_cases
from ..context import StageContext
from .config import CaseChoice, SparsExperiment

CHOICE = tuple(field.name for field in fields(CaseChoice))
"""Fields of the environment that each purpose has its own of."""
LABELLED_CASES = (
    *("seed", "classifier_train", "validation"),
    *(f"env.{field.name}" for field in fields(LiverDataConfig) if field.name not in (*CHOICE, "cache_dir")),
)
"""Keys of the configuration that decide the cases whose labels are learned from."""
STEPS_PER_BATCH = 100
"""Steps of the agent's training that take about as long as a batch of the classifier's: for the time left."""


class Context(StageContext[SparsExperiment]):
    """What the baselines of a run are trained from."""

    @property
    def hu_window(self) -> tuple[float, float]:
        """HU that the bytes 0 and 255 of the cases stand for."""
        return self.experiment.env.hu_window or HU_WINDOW

    def labelled_cases(self) -> tuple[list[LiverCase], list[LiverCase]]:
        """The cases that the classifier learns from, and those that validate it."""
        env, choices = self.experiment.env, (self.experiment.classifier_train, self.experiment.validation)
        train, val = (load_liver_cases(choice.of(env)) for choice in choices)
        return train, val
