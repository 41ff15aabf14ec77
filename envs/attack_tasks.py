"""The environments of RP-PGD: an attack on scenes in the manner of three data sets, and on slices of liver CTs
(docs/rp-pgd.md, Method 19).

>>> import gymnasium as gym, segarena
>>> from segarena.agents.papers import POLICIES
>>> env = gym.make("RPPGD-LiverCT-v0", cases=["phantom_2000"], device="cpu")
>>> obs, info = env.reset(seed=0, options={"index": 3})
>>> obs.shape, info["steps"], env.action_space.shape
((40,), 3, (11,))
>>> policy = POLICIES["RPPGD-LiverCT-v0"]["segpgd"].policy(env.unwrapped.batched, seed=0)
>>> terminated = False
>>> while not terminated:
...     obs, reward, terminated, truncated, info = env.step(policy(env.unwrapped.batched)[0].numpy())
>>> info["sample_id"][:13], info["n_bwd"], info["damage"] > 0.1
('phantom_02000', 3, True)
"""

from ..datasets.images import ImagePool
from ..datasets.liver.slices import load_slices
from ..datasets.scenes.images import load_scenes
from .attack import AttackEnv
from .attack_config import ADE20KAttackConfig, CityscapesAttackConfig, LiverAttackConfig, SceneAttackConfig


class VOCAttackEnv(AttackEnv):
    """Attack the segmentation of photographs of everyday scenes (VOC 2012, 21 classes)."""

    config_class = SceneAttackConfig
    env_id = "RPPGD-VOC-v0"

    def _pool(self) -> ImagePool:
        assert isinstance(self.config, SceneAttackConfig)
        return load_scenes(self.config, self.config.split).pool()


class CityscapesAttackEnv(VOCAttackEnv):
    """Attack the segmentation of street scenes (Cityscapes, 19 classes)."""

    config_class = CityscapesAttackConfig
    env_id = "RPPGD-Cityscapes-v0"


class ADE20KAttackEnv(VOCAttackEnv):
    """Attack the segmentation of photographs of any scene (ADE20K, 150 classes)."""

    config_class = ADE20KAttackConfig
    env_id = "RPPGD-ADE20K-v0"


class LiverAttackEnv(AttackEnv):
    """Attack the segmentation of liver and tumour in axial slices of CTs."""

    config_class = LiverAttackConfig
    env_id = "RPPGD-LiverCT-v0"
    packaged = "liver"

    def _pool(self) -> ImagePool:
        assert isinstance(self.config, LiverAttackConfig)
        return load_slices(self.config, self.config.slices)
