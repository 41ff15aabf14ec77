"""The contract check passes what keeps the contract, and finds each of many seeded faults."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from segarena.envs.core import BatchedEnv
from segarena.testing import check_env_contract


class Walk(BatchedEnv):
    """A place in 0..8 that actions move; the episode ends at 8. All that the contract asks for, and each hook small."""

    def __init__(self, horizon=9, **settings):
        super().__init__(horizon=horizon, **settings)
        self.single_observation_space = spaces.Box(0.0, 1.0, (2,), np.float32)
        self.single_action_space = spaces.Discrete(3)
        self.reward_weights = {"reward": 1.0, "cost": 0.5}
        self.place = torch.zeros(self.num_envs, dtype=torch.int64, device=self.device)
        self.noise = torch.zeros(self.num_envs, device=self.device)

    def _reset(self, env_ids, options):
        self.place = self.place.index_copy(0, env_ids, (self.streams.uniform(1, env_ids)[:, 0] * 5).long())
        self.noise = self.noise.index_fill(0, env_ids, 0.0)

    def _step(self, actions):
        self.place = (self.place + actions - 1).clamp(0, 8)
        self.noise = self.drawn()
        return {"reward": (self.place / 8).float(), "cost": -self.noise}, self.place == 8

    def drawn(self):
        return self.streams.uniform(1)[:, 0].float()

    def observe(self, env_ids=None):
        obs = torch.stack((self.place / 8, self.noise), dim=1)
        return obs if env_ids is None else obs[env_ids]

    def _info(self):
        return {"place": self.place}

    def _render_frame(self, env_id):
        return np.full((4, 4, 3), int(self.place[env_id]), np.uint8)

    def state(self):
        return {**super().state(), "place": self.place, "noise": self.noise}

    def load_state(self, state):
        super().load_state(state)
        self.place, self.noise = state["place"].clone(), state["noise"].clone()


def test_what_keeps_the_contract_passes():
    check_env_contract(Walk)


def test_registered_environments_are_named_by_their_id():
    with pytest.raises(ValueError, match=r"env is 'Walk-v0' but registered are .*SPARS-LiverCT-v0"):
        check_env_contract("Walk-v0")


# -- seeded faults -------------------------------------------------------------------------------------------------


class WrongShape(Walk):
    def observe(self, env_ids=None):
        return super().observe(env_ids)[..., :1]


class OutsideItsSpace(Walk):
    def observe(self, env_ids=None):
        return super().observe(env_ids) * 2


class WrongType(Walk):
    def observe(self, env_ids=None):
        return super().observe(env_ids).double()


class GlobalGenerator(Walk):
    def drawn(self):
        return torch.rand(self.num_envs)


class NumPysGenerator(Walk):
    def drawn(self):
        return torch.as_tensor(np.random.random(self.num_envs)).float()  # noqa: NPY002


class SharedBuffer(Walk):
    def observe(self, env_ids=None):
        self._buffer = getattr(self, "_buffer", torch.zeros(self.num_envs, 2))
        if env_ids is not None:
            return super().observe(env_ids)
        return self._buffer.copy_(super().observe())


class TermWithoutWeight(Walk):
    def _step(self, actions):
        terms, terminated = super()._step(actions)
        return {**terms, "extra": terms["cost"]}, terminated


class FloatTerminated(Walk):
    def _step(self, actions):
        terms, terminated = super()._step(actions)
        return terms, terminated.float()


class DoubleReward(Walk):
    def _step(self, actions):
        terms, terminated = super()._step(actions)
        return {name: term.double() for name, term in terms.items()}, terminated


class NaNReward(Walk):
    def _step(self, actions):
        terms, terminated = super()._step(actions)
        return {**terms, "cost": terms["cost"] / 0 * 0}, terminated


class IgnoresIdsInObserve(Walk):
    def observe(self, env_ids=None):
        obs = super().observe()
        return obs if env_ids is None else obs[: len(env_ids)]


class IgnoresIdsInReset(Walk):
    def _reset(self, env_ids, options):
        self.place = (self.streams.uniform(1)[:, 0] * 5).long()


class ForgetsState(Walk):
    def state(self):
        return {name: value for name, value in super().state().items() if name != "noise"}

    def load_state(self, state):
        super().load_state({**state, "noise": self.noise})


class KeepsAnArrayInItsState(Walk):
    def state(self):
        return {**super().state(), "extra": np.zeros(3)}


class LoadsWithoutCopy(Walk):
    def _step(self, actions):
        self.counted += 1
        return super()._step(actions)

    def __init__(self, **settings):
        super().__init__(**settings)
        self.counted = torch.zeros(1)

    def state(self):
        return {**super().state(), "counted": self.counted}

    def load_state(self, state):
        super().load_state(state)
        self.counted = state["counted"]


class DependsOnItsNeighbours(Walk):
    def _step(self, actions):
        terms, terminated = super()._step(actions)
        return {**terms, "cost": terms["cost"] - self.place.float().mean()}, terminated


class NeverEnds(Walk):
    def __init__(self, **settings):
        super().__init__(horizon=1000, **settings)

    def _step(self, actions):
        terms, terminated = super()._step(actions)
        return terms, torch.zeros_like(terminated)


class KeepsAnEpisodeOverSeeding(Walk):
    def _reset(self, env_ids, options):
        super()._reset(env_ids, options)
        self.episodes = getattr(self, "episodes", 0) + 1
        self.noise = self.noise.index_fill(0, env_ids, 1 / self.episodes)


class TakesEveryAction(Walk):
    def actions_from(self, actions):
        return torch.as_tensor(np.resize(actions, self.num_envs)).clamp(0, 2)


class TellsHalfItsEnds(Walk):
    def _episode_info(self, env_ids):
        return lambda: [{}] * (len(env_ids) - 1)


class FloatPictures(Walk):
    def _render_frame(self, env_id):
        return np.zeros((4, 4, 3))


class MasksEverything(Walk):
    def action_masks(self):
        return torch.zeros(self.num_envs, 3, dtype=torch.bool)


class HasNoSpaces(Walk):
    def __init__(self, **settings):
        super().__init__(**settings)
        del self.single_action_space


class TellsOtherInfoLater(Walk):
    def _info(self):
        return {"place": self.place, **({"late": self.place} if bool(self.t.any()) else {})}


@pytest.mark.parametrize(
    ("fault", "error", "match"),
    [
        (WrongShape, AssertionError, r"observation of environment 0 after a reset is not in Box.*float32 \[1\]"),
        (OutsideItsSpace, AssertionError, "is not in Box"),
        (WrongType, AssertionError, "is not in Box.*float64"),
        (GlobalGenerator, AssertionError, "the same seed gave other episodes: draw by self.streams"),
        (NumPysGenerator, AssertionError, "the same seed gave other episodes: draw by self.streams"),
        (SharedBuffer, AssertionError, "what was told before step 2 changed in it"),
        (TermWithoutWeight, ValueError, "reward_weights names"),
        (FloatTerminated, ValueError, "terminated is torch.float32 but must be torch.bool"),
        (DoubleReward, AssertionError, "reward is torch.float64"),
        (NaNReward, AssertionError, "must be finite"),
        (IgnoresIdsInObserve, AssertionError, r"observe\(\[2, 0\]\) must be those rows of observe\(\)"),
        (IgnoresIdsInReset, AssertionError, "must leave the other environments alone"),
        (ForgetsState, AssertionError, "state and load_state must hold all .* observations differ"),
        (KeepsAnArrayInItsState, AssertionError, "state.. must hold tensors, numbers"),
        (LoadsWithoutCopy, AssertionError, "load_state must copy"),
        (DependsOnItsNeighbours, AssertionError, "environment 0 plays otherwise among 3 than alone"),
        (NeverEnds, AssertionError, "no episode ended in 60 steps"),
        (KeepsAnEpisodeOverSeeding, AssertionError, "something was left over"),
        (TakesEveryAction, AssertionError, "actions outside the space must be refused"),
        (TellsHalfItsEnds, AssertionError, "one dictionary for each of"),
        (FloatPictures, AssertionError, "_render_frame must give uint8"),
        (MasksEverything, AssertionError, "action_masks are"),
        (HasNoSpaces, AssertionError, "the constructor must set single_action_space"),
        (TellsOtherInfoLater, AssertionError, "info has .* but had"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "",
)
def test_each_fault_is_found_and_named(fault, error, match):
    with pytest.raises(error, match=match):
        check_env_contract(fault)


def test_dependence_by_design_is_allowed():
    check_env_contract(DependsOnItsNeighbours, independent=False)


def test_the_check_leaves_the_global_generators_as_they_were():
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    expected = torch.rand(1), np.random.random()  # noqa: NPY002
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002
    check_env_contract(Walk, steps=20)
    assert (torch.rand(1), np.random.random()) == expected  # noqa: NPY002
