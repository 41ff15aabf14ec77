"""AdaBN followed by the corrector, everywhere or only where its mask breaks the anatomical rules."""

import torch
from rl4seg_runs import context_of
from segarena.agents.rl4seg.baselines import BASELINES
from segarena.agents.rl4seg.methods import Methods
from segarena.agents.rl4seg.rules import CorrectorPolicy, NetworkPolicy
from segarena.agents.rl4seg.stages import corrector
from segarena.evaluation.echo import largest_heart
from segarena.rewards.echo_validity import valid_masks

NAMES = ("adabn_corrector", "adabn_corrector_invalid")


def test_valid_masks_stay_and_the_others_are_corrected(monkeypatch):
    masks = torch.zeros(4, 32, 32, dtype=torch.uint8)
    for number, mask in enumerate(masks):
        mask[5 : 20 + number, 5:20] = 2
        mask[8 : 20 + number, 8:16] = 1
    masks[:, 28:30, 28:30] = 2  # is no part of the heart: what is scored lacks it
    monkeypatch.setattr(NetworkPolicy, "__call__", lambda self, env: masks)
    seen = []

    def to_ones(wrong):
        seen.append(wrong)
        return torch.full_like(wrong, 1)

    def of_odd_number(hearts):
        assert not hearts[:, 28:, 28:].any(), "judged as it is scored"
        return torch.tensor([False, True, False, True])

    found = CorrectorPolicy(None, to_ones, of_odd_number)(None)
    assert torch.equal(seen[0], masks[::2])
    assert torch.equal(found[::2], torch.full_like(masks[::2], 1))
    assert torch.equal(found[1::2], largest_heart(masks)[1::2])
    assert torch.equal(CorrectorPolicy(None, to_ones)(None), torch.full_like(masks, 1))
    none = CorrectorPolicy(None, to_ones, lambda hearts: torch.ones(4, dtype=torch.bool))
    assert torch.equal(none(None), largest_heart(masks))


def test_they_correct_the_masks_of_the_adapted_network(tiny):
    context = context_of(tiny)
    methods, images = Methods(context), context.target_val
    (adabn,), *corrected = (methods.load(name)(images) for name in ("adabn", *NAMES))
    (everywhere,), (where_invalid,) = corrected
    repaired = corrector(context)(adabn.masks)
    assert torch.equal(everywhere.masks, repaired)
    hearts = largest_heart(adabn.masks)
    broken = ~valid_masks(hearts)
    assert torch.equal(where_invalid.masks, torch.where(broken[:, None, None], repaired, hearts))
    assert all((one.supervision, one.sees_target) == ("source", True) for one in (everywhere, where_invalid))
    assert [one.method for one in (everywhere, where_invalid)] == [BASELINES[name].title for name in NAMES]
