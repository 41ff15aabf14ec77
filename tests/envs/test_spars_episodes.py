"""Ends of an episode: rounds for two agents, masks without a tumour (docs/spars.md, Method 3 and 5)."""

import pytest
import torch
from spars_toys import MINUS_X, PLUS_X, Always, line_env


def test_after_a_find_with_rounds_left_both_agents_return_to_their_starts():
    env = line_env({8: 0.9}, opponent=Always(PLUS_X), threshold=0.5, lesion_rounds=2)
    env.seed([0])
    env.reset(options={"start": [16, 0, 0], "start_opponent": [20, 0, 0]})
    _, first, _ = env.step(torch.tensor([MINUS_X]))
    assert env.info()["p_opp"].tolist() == [[24, 0, 0]]
    _, second, _ = env.step(torch.tensor([MINUS_X]))
    assert not (first | second).item(), "a round is left"
    assert env.info()["p_self"].tolist() == [[16, 0, 0]]
    assert env.info()["p_opp"].tolist() == [[20, 0, 0]]
    assert env.scores.tolist() == [[0.0], [0.0]], "of the places where they stand now"


@pytest.mark.parametrize(("theta", "score"), [(10.0, (1.0, 1.0, 1.0)), (0.1, (0.0, 0.0, 0.0))])
def test_without_tumour_an_empty_mask_is_right_and_any_other_wrong(theta, score):
    env = line_env({12: 0.2}, None, opponent=Always(PLUS_X), threshold=1.0, horizon=1, mask_threshold=theta)
    env.seed([0])
    env.reset()
    env.step(torch.tensor([MINUS_X]))
    assert env.painting.mask().any().item() is (theta < 1)
    (info,) = env.episode_info(torch.tensor([0]))
    assert (info["dice"], info["precision"], info["recall"]) == score
    assert env.painting.dice() == score[0]
