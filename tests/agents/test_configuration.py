"""The configuration of a run is read back, and what is wrong with it is said with the name of its file."""

import pytest
import yaml
from segarena.agents.configuration import read_experiment
from segarena.common.runs import Run


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"paper": "spars", "zzz": 1}, "there is no zzz"),
        ({"paper": "spars", "env": None}, r"env is None but must be a section"),
        ({"paper": "spars", "env": {"horizon": None, "threshold": "high"}}, "env.threshold is 'high'"),
        ({"paper": "spars", "seed": -1}, "seed is -1"),
        ({"paper": "spars", "seed": 10**400}, "seed is 1000"),
        ({"paper": "spars", "name": "two\nlines"}, "name is .* must be one line"),
        ({"paper": ["spars"]}, "paper is"),
        ({"seed": 1}, "names no paper"),
    ],
)
def test_what_is_wrong_with_the_configuration_of_a_run_names_the_file(tmp_path, config, said):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=rf"config\.yaml(: {said}| {said})"):
        read_experiment(Run.open(tmp_path))


def test_a_configuration_is_read_again_and_again(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"paper": "spars", "seed": 3, "env": {"horizon": 7}}))
    for _ in range(2):
        _, experiment = read_experiment(Run.open(tmp_path))
        assert (experiment.seed, experiment.env.horizon) == (3, 7)
