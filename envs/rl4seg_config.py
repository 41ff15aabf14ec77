"""Arguments of RL4Seg-Echo-v0 (docs/rl4seg.md, Method 2 and 6)."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..common.checks import AT_LEAST_0, AT_LEAST_1, check
from ..datasets.echo.images import EchoDataConfig
from ..rewards.reward_net import Fusion

RewardName = Literal["reward_net", "pixel_accuracy", "accuracy_map", "accuracy", "dice", "anatomical"]
REWARDS = get_args(RewardName)
OF_TRUTH = ("pixel_accuracy", "accuracy_map", "accuracy", "dice")
"""The rewards that need the truth."""


@dataclass(frozen=True)
class EchoEnvConfig(EchoDataConfig):
    """Constructor arguments of RL4Seg-Echo-v0: the data, the reward, and the order of the images.

    Raises:
        ValueError: a value outside its range.
    """

    split: str = "train"
    """train, val or test, of phantoms also pred, the pool to adapt to; no patient is in two of them."""
    reward: RewardName | list[RewardName] = "pixel_accuracy"
    """Pixel reward in [0, 1]. reward_net: predicted probability that the label is correct; pixel_accuracy: 1 where it
    is correct; accuracy, accuracy_map: share of right pixels; dice: mean of LV and MYO; anatomical: 1 where the mask is
    valid. Several: their minimum at each pixel. All but reward_net and anatomical use the truth."""
    reward_net: str | list[str] | None = None
    """Weights (.safetensors) of the reward network, for reward=reward_net; of several: their maps are fused."""
    fusion: Fusion = "min"
    """Of the maps of several reward networks at each pixel. min: the least; lcb: max(mean - lcb_width · standard
    deviation, 0)."""
    lcb_width: float = 1.0
    """Standard deviations below the mean, of fusion lcb."""
    sampler: Literal["per_env", "shared"] = "per_env"
    """Order of the images. per_env: each environment shows all images; shared: all environments together show each
    image once a pass."""
    group: int = 1
    """Number of consecutive environments that show the same image; more than 1 needs sampler=shared."""
    compute_validity: bool = False
    """Add is_valid, the anatomical validity of the mask (docs/rl4seg.md, Method 9), to the info; computed on the
    CPU."""
    expose_truth: bool = True
    """Add dice_lv, dice_myo and dice_epi to the info at the end of an episode, where the truth is known."""
    horizon: ClassVar[int] = 1
    """An episode is one step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, group=AT_LEAST_1, lcb_width=AT_LEAST_0)
        if not self.rewards:
            raise ValueError(f"reward is empty but needs at least one of {', '.join(map(repr, REWARDS))}")
        if ("reward_net" in self.rewards) != bool(self.reward_net):
            raise ValueError(
                f"reward is {self.reward!r} and reward_net is {self.reward_net!r}: reward='reward_net' needs "
                f"reward_net=<weights.safetensors> of a trained reward network, and no other reward takes one"
            )
        if self.group > 1 and self.sampler == "per_env":
            raise ValueError(f"group is {self.group!r} but needs sampler='shared'; or leave it out")

    @property
    def rewards(self) -> list[str]:
        """Names of the configured rewards; the pixel reward is their minimum."""
        return [self.reward] if isinstance(self.reward, str) else list(self.reward)
