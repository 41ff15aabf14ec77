"""Every reward network of a run says whether it prefers the truth to the policy's own mask."""

import pytest
import torch
from rl4seg_runs import context_of
from segarena.agents.rl4seg.stages import policy_folder
from segarena.common.runs import Run
from segarena.evaluation.results import read_results
from segarena.rewards.ranking import truth_preferred
from segarena.segmenters.inference import segment

NAMES = ("truth_preferred", "truth_preferred_regions")


@pytest.mark.parametrize("i", [1, 2])
def test_it_is_logged_on_the_sources_validation_images_and_the_masks_of_the_policy_before(tiny, i):
    context = context_of(tiny)
    line = Run(tiny / f"iteration_{i}/reward_net").metrics()[-1]
    images = context.source_val
    own = segment(context.load(policy_folder(context, i - 1)), images.images)
    expected = truth_preferred(context.reward_net(i), images, own).means()
    assert {name: line[f"reward_net/{name}"] for name in NAMES} == pytest.approx(expected, abs=1e-6)
    assert not set(images.groups) & set(context.target_all.groups)


def test_it_stands_in_the_results_of_the_method_that_learned_by_it(evaluated):
    run, _ = evaluated
    context = context_of(run)
    results = {result.method: result for result in read_results(run / "evaluation" / "test")}
    assert [name for name, result in results.items() if NAMES[0] in result.metrics] == ["Tiny"]
    found = results["Tiny"]
    test = context._load("target", "test")
    own = segment(context.load(policy_folder(context, 2)), test.images)
    expected = truth_preferred(context.reward_net(2), test, own)
    for name, values in zip(NAMES, (expected.image, expected.regions), strict=True):
        by_case = torch.tensor([case[name] for case in found.cases], dtype=torch.float64)
        torch.testing.assert_close(by_case, values)
        assert found.metrics[name] == pytest.approx(float(values.mean()))
    head = (run / "evaluation" / "test" / "table.md").read_text().split("| Method ")[2].splitlines()[0]
    assert "Truth preferred (%)" in head
    assert "Truth preferred, regions (%)" in head
