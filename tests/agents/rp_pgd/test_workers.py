"""Two processes that train adversarially together end like one with the doubled batch, batch normalisation included."""

from pathlib import Path

import pytest
import torch
import yaml
from adversarial_toys import TINY
from safetensors.torch import load_file
from segarena.agents.command_line import main
from segarena.common.runs import Run
from segarena.common.workers import ONE_PROCESS
from two_processes import run_two

TESTS = Path(__file__).parents[2]
PROGRAM = f"""
import sys
from pathlib import Path

sys.path.insert(0, {str(TESTS)!r})
import torch
from adversarial_toys import SIDE, config, toy_victim, toys
from segarena.agents.rp_pgd import training
from segarena.common.checkpoints import save_weights
from segarena.common.runs import Run
from segarena.common.workers import Workers
from segarena.datasets.scenes.augmentation import AugmentationConfig

torch.set_num_threads(1)


def train(name, workers, **settings):
    victim = toy_victim(seed=workers.rank, dropout=0.0)  # rank 0's weights count
    val, augmentation = toys(3, first=50).pool(), AugmentationConfig(crop=SIDE)
    run = Run(Path(folder, name))
    given = config(**{{"epochs": 2, "learning_rate": 0.02, **settings}})
    training.train_adversarial(victim, toys(16), val, augmentation, given, run, 7, workers=workers)
    run.close()
    save_weights(Path(folder, f"{{name}}-{{workers.rank}}.safetensors"), victim.model.state_dict())


def both(workers, batch_size):
    train("sat", workers, batch_size=batch_size)
    train("split", workers, batch_size=batch_size, bn="split", method="at", attack="rp_pgd_pp")
    train("all", workers, batch_size=batch_size, adv_ratio=1.0)


if __name__ == "__main__":
    folder = sys.argv[1]
    with Workers.from_environment("cpu") as workers:
        both(workers, 2)
        synchronise, training.synchronise = training.synchronise, lambda net, workers: None
        train("apart", workers, batch_size=2)
        training.synchronise = synchronise
"""
COMMAND = """
import sys
from pathlib import Path

from segarena.agents.command_line import main

if __name__ == "__main__":
    options = ["--training.batch_size", "2", "--training.epochs", "2", "--name", "two", "--training.method", "sat"]
    main(["train", "--config", sys.argv[1] + "/tiny.yaml", "--out", sys.argv[1] + "/run", *options])
    names = [file.read_text() for file in Path("/proc/self/task").glob("*/comm")]
    sys.exit(any("gloo" in name for name in names))  # such a thread can abort an interpreter that ends
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder in which two processes and one have trained: eight and sixteen gradient steps."""
    folder = tmp_path_factory.mktemp("two")
    run_two(PROGRAM, folder)
    (folder / "one").mkdir()
    scope = {"__name__": "program", "folder": str(folder / "one")}
    exec(PROGRAM, scope)
    scope["both"](ONE_PROCESS, 4)
    return folder


@pytest.mark.parametrize("name", ["sat", "split", "all"])
def test_two_workers_end_like_one_process_with_the_doubled_batch(two, name):
    one = load_file(two / f"one/{name}-0.safetensors")
    for rank in (0, 1):
        weights = load_file(two / f"{name}-{rank}.safetensors")
        assert one.keys() == weights.keys(), "a file of one process is read by several, and the other way round"
        for key in one:
            torch.testing.assert_close(weights[key], one[key], rtol=0, atol=1e-5, msg=f"rank {rank}: {key}")


def test_statistics_of_each_workers_own_images_would_end_elsewhere(two):
    one, apart = load_file(two / "one/sat-0.safetensors"), load_file(two / "apart-0.safetensors")
    assert max(float((one[key].float() - apart[key].float()).abs().max()) for key in one) > 1e-3


def test_the_curves_are_those_of_one_process(two):
    for name in ("sat", "split", "all"):
        lines, expected = Run(two / name).metrics(), Run(two / "one" / name).metrics()
        assert len(lines) == 2
        for line, other in zip(lines, expected, strict=True):
            assert line.keys() == other.keys()
            losses = [key for key in line if "loss" in key or key.endswith(("lr", "_size"))]
            assert {key: line[key] for key in losses} == pytest.approx({key: other[key] for key in losses}, abs=1e-4)


def test_torchrun_trains_from_the_command_line(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    said = run_two(COMMAND, tmp_path)
    assert "segmenter" in said[0]
    assert "segmenter" not in said[1], "only rank 0 says how far it is"
    options = ["--training.batch_size", "4", "--training.epochs", "2", "--training.method", "sat"]
    options += ["--out", str(tmp_path / "one")]
    assert main(["train", "--config", str(tmp_path / "tiny.yaml"), *options]) == 0
    files = (folder / "segmenter" / "victim.safetensors" for folder in (tmp_path / "run", tmp_path / "one"))
    both, one = map(load_file, files)
    assert both.keys() == one.keys()
    for key in one:
        torch.testing.assert_close(both[key], one[key], rtol=0, atol=1e-5, msg=key)
    assert [line["step"] for line in Run(tmp_path / "run" / "segmenter").metrics()] == [1, 2]
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0, "it is finished"
    capsys.readouterr()
    assert main(["evaluate", "--run", str(tmp_path / "run")]) == 0
    assert "two" in capsys.readouterr().out
