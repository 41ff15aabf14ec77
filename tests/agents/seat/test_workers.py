"""Two processes that train against attacks together end like one with the doubled batch, with the same K on both."""

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from seat_toys import TINY
from segarena.agents.command_line import main
from segarena.common.runs import Run
from segarena.common.workers import ONE_PROCESS
from two_processes import run_two

TESTS = Path(__file__).parents[2]
PROGRAM = f"""
import json, sys
from pathlib import Path

sys.path.insert(0, {str(TESTS)!r})
import torch
from seat_toys import DATA, toy_config, toy_network
from segarena.agents.seat.training import train_network
from segarena.common import fitting
from segarena.common.checkpoints import save_weights
from segarena.common.runs import Run
from segarena.common.workers import Workers
from segarena.datasets.decathlon.cases import load_decathlon
from segarena.datasets.decathlon.sampling import PatchSampler

torch.set_num_threads(1)
fitting.CHECKPOINT_SECONDS = -1.0


def train(name, workers, **settings):
    net = toy_network(seed=workers.rank)  # rank 0's weights count
    sampler = PatchSampler(load_decathlon(DATA, "train"), DATA.resolved_plan(), seed=1)
    run = Run(Path(folder, name))
    given = toy_config(**{{"schedule": "seat", "period": 1, "most_iterations": 3, "learning_rate": 0.01, **settings}})
    train_network(net, sampler, load_decathlon(DATA, "select"), given, run, 7, workers=workers)
    run.close()
    save_weights(Path(folder, f"{{name}}-{{workers.rank}}.safetensors"), net.state_dict())


def both(workers, batch_size):
    train("seat", workers, batch_size=batch_size, epochs=3)
    for epochs in (2, 3):
        train("stopped", workers, batch_size=batch_size, epochs=epochs)
    train("pgd", workers, batch_size=batch_size, epochs=2, method="pgd", start="zero")


if __name__ == "__main__":
    folder = sys.argv[1]
    with Workers.from_environment("cpu") as workers:
        both(workers, 3)
"""
COMMAND = """
import sys

from segarena.agents.command_line import main

if __name__ == "__main__":
    options = ["--training.batch_size", "2", "--name", "two"]
    sys.exit(main(["train", "--config", sys.argv[1] + "/tiny.yaml", "--out", sys.argv[1] + "/run", *options]))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder in which two processes and one have trained."""
    folder = tmp_path_factory.mktemp("two")
    run_two(PROGRAM, folder)
    (folder / "one").mkdir()
    scope = {"__name__": "program", "folder": str(folder / "one")}
    exec(PROGRAM, scope)
    scope["both"](ONE_PROCESS, 6)
    return folder


@pytest.mark.parametrize("name", ["seat", "pgd", "stopped"])
def test_two_workers_end_like_one_process_with_the_doubled_batch(two, name):
    one = load_file(two / f"one/{name}-0.safetensors")
    for rank in (0, 1):
        weights = load_file(two / f"{name}-{rank}.safetensors")
        for key in one:
            torch.testing.assert_close(weights[key], one[key], rtol=0, atol=1e-5, msg=f"rank {rank}: {key}")


def test_the_noise_of_each_worker_survives_a_stop(two):
    whole, stopped = load_file(two / "seat-0.safetensors"), load_file(two / "stopped-0.safetensors")
    assert all(torch.equal(whole[key], stopped[key]) for key in whole)


def test_the_magnitude_and_so_the_iterations_are_those_of_one_process(two):
    lines, expected = Run(two / "seat").metrics(), Run(two / "one" / "seat").metrics()
    assert [line["segmenter/iterations"] for line in lines] == [1, 2, 2]
    for line, other in zip(lines, expected, strict=True):
        names = ("iterations", "threshold", "grad_l1_raw", "grad_l1_rel", "loss", "delta", "passes", "lr")
        for name in names:
            assert line[f"segmenter/{name}"] == pytest.approx(other[f"segmenter/{name}"], abs=1e-4), name


def test_torchrun_trains_from_the_command_line(tmp_path):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    said = run_two(COMMAND, tmp_path)
    assert "segmenter" in said[0]
    assert "segmenter" not in said[1], "only rank 0 says how far it is"
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "one")]) == 0
    both, one = (load_file(tmp_path / name / "segmenter" / "victim.safetensors") for name in ("run", "one"))
    for key in one:
        torch.testing.assert_close(both[key], one[key], rtol=0, atol=1e-5, msg=key)
