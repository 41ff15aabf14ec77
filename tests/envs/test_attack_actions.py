"""The environments of RP-PGD: the numbers of an action (docs/rp-pgd.md, Method 20)."""

import pytest
import torch
from attack_games import action, actions, begun, made
from segarena.attacks.prototypes import inter_class, intra_class
from segarena.envs.attack_actions import NUMBERS, RANGES, decode, encode


def test_numbers_are_decoded_as_the_table_says():
    found = decode(torch.tensor([[-1.0] * 11, [0.0] * 11, [1.0] * 11]))
    assert found[0].tolist() == pytest.approx([0] * 5 + [0, -1, 0.01, 0, 0, 0])
    assert found[1].tolist() == pytest.approx([0.5] * 5 + [0.5, 0, 0.1, 0.5, 1, 0.5])
    assert found[2].tolist() == pytest.approx([1] * 5 + [1, 1, 1, 1, 2, 1])
    assert found.dtype == torch.float64
    for row in found.tolist():
        assert decode(torch.tensor([encode(row)], dtype=torch.float64))[0].tolist() == pytest.approx(row)
    assert all(low <= x <= high for row in found.tolist() for x, (low, high) in zip(row, RANGES.values(), strict=True))


def test_a_number_without_an_action_is_refused():
    with pytest.raises(ValueError, match=r"the step has step_size 0.001 but an action has it in \[0.01, 1\]"):
        action(step_size=0.001)
    with pytest.raises(ValueError, match=r"PGD, step 0 of 3, has step_size 0.00125 but an action"):
        made(step_size=0.0001, residual_to="pgd")


CHANGED = {
    **dict.fromkeys(NUMBERS[:5], 0.1),
    "inter": 1.0,
    "intra": -1.0,
    "step_size": 0.2,
    "region_mean": 1.0,
    "confidence": 2.0,
    "momentum": 1.0,
}


@pytest.mark.parametrize("name", NUMBERS)
def test_each_number_moves_the_image(name):
    """From a random start far out every group has pixels after a step back and forth."""
    changed = []
    for numbers in ({}, {name: CHANGED[name]}):
        env = begun(6, eps=0.3, horizons=(9,), rand_start=True)
        env.step(actions(env, step_size=0.5))
        env.core.observe(torch.cat([env.core.images[:3], env.core.adversarial[3:]]))
        seen = {number for one in env.info()["region_frac"] for number in one.nonzero().flatten().tolist()}
        assert seen == {0, 1, 2, 3, 4}
        env.step(actions(env, **numbers))
        changed.append((env.core.gradient, env.core.adversarial))
    assert not torch.equal(changed[0][1], changed[1][1])
    if name not in ("step_size", "momentum"):
        assert not torch.allclose(changed[0][0], changed[1][0], rtol=1e-3)


def test_no_weight_leaves_the_image_as_it_is():
    env = begun(horizons=(3,))
    for _ in range(3):
        reward, terminated, _ = env.step(actions(env, **dict.fromkeys(NUMBERS[:5], 0.0), step_size=1.0))
        assert reward.tolist() == [0.0] * 4
    assert terminated.all()
    assert torch.equal(env.x_adv, env.core.images)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_prototype_terms_rise_and_fall_by_their_weight(sign):
    env = begun(horizons=(3,), eps=0.02)
    options, none = env.core.options, dict.fromkeys(NUMBERS[:5], 0.0)

    def value(term):
        protos = env.core.class_prototypes()
        one = inter_class(protos) if term == "inter" else intra_class(protos, options.intra_skip)
        return one.detach()

    before = value("intra")
    env.step(actions(env, **none, intra=sign, step_size=0.01))
    assert ((value("intra") - before) * sign > 0).all()
    assert torch.allclose(env.info()["loss/intra"], sign * before)
    before = value("inter")
    env.step(actions(env, **none, inter=1.0, step_size=0.01))
    assert (value("inter") - before > 0).all()
