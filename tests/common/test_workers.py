"""Two processes that train together, on one machine, end like one with the doubled batch; and what a worker gets."""

import json

import pytest
import torch
from safetensors.torch import load_file
from segarena.common.runs import Run
from segarena.common.workers import ONE_PROCESS, Workers
from torch import nn
from two_processes import run_two

PROGRAM = """
import json, sys
from pathlib import Path

import torch
from segarena.common import fitting
from segarena.common.checkpoints import save_weights
from segarena.common.runs import Run
from segarena.common.workers import Workers
from segarena.datasets.echo.images import EchoDataConfig, PhantomPatients, load_echo
from segarena.segmenters.training import SupervisedConfig, train_segmenter
from segarena.segmenters.unet import UNet

torch.set_num_threads(1)
fitting.CHECKPOINT_SECONDS = -1.0


def train(name, workers, *, batch_size, epochs=3, norm="group", dropout=0.0):
    patients = PhantomPatients(train=3, val=0, test=0, pred=0)
    pool = load_echo(EchoDataConfig(size=32, phantom_patients=patients), "train")
    torch.manual_seed(1 + workers.rank)  # rank 0's weights count
    net = UNet(1, 3, init_channels=4, norm=norm, dropout=dropout)
    config = SupervisedConfig(epochs=epochs, batch_size=batch_size)
    run = Run(Path(folder, name))
    best = train_segmenter(net, pool.take(range(10)), pool.take((10, 11)), config, run, 7, workers=workers)
    run.close()
    save_weights(Path(folder, f"{name}-{workers.rank}.safetensors"), net.state_dict())
    return best


def together():
    with Workers.from_environment("cpu") as workers:
        found = {"best": train("two", workers, batch_size=3)}
        train("whole", workers, batch_size=3, epochs=4, norm="batch", dropout=0.25)
        for epochs in (2, 4):
            train("stopped", workers, batch_size=3, epochs=epochs, norm="batch", dropout=0.25)
        found["gathered"] = workers.gather(f"rank {workers.rank} of {workers.world_size}")
        found["broadcast"] = workers.broadcast(workers.rank + 5)
        found["mean"] = workers.mean({"a": 1.0 + workers.rank, "b": -2.0})
        value = torch.tensor([1.0, 2.0], requires_grad=True)
        total = workers.total((1 + workers.rank) * value)
        ((1 + workers.rank) * total).sum().backward()
        found["total"] = [total.tolist(), value.grad.tolist()]
        found["shard"] = workers.shard(torch.arange(5)).tolist()
        found["drawn"] = torch.load(Path(folder, "whole/checkpoints/step_000000000004/state.pt"), weights_only=True)
        found["drawn"] = [len({bytes(kind["torch"]["cpu"].numpy()) for kind in found["drawn"]["random"]})]
        Path(folder, f"found-{workers.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    folder = sys.argv[1]
    together()
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Folder in which two processes ran `together`."""
    folder = tmp_path_factory.mktemp("two")
    said = run_two(PROGRAM, folder)
    assert "segmenter" in said[0]
    assert "segmenter" not in said[1], "only rank 0 shows a progress bar"
    return folder


def found(folder, rank):
    return json.loads((folder / f"found-{rank}.json").read_text())


def test_two_workers_end_like_one_process_with_the_doubled_batch(two, tmp_path):
    scope = {"__name__": "program", "folder": str(tmp_path)}
    exec(PROGRAM, scope)
    expected = scope["train"]("one", ONE_PROCESS, batch_size=6)
    one = load_file(tmp_path / "one-0.safetensors")
    for rank in (0, 1):
        weights = load_file(two / f"two-{rank}.safetensors")
        assert one.keys() == weights.keys()
        for name in one:
            torch.testing.assert_close(weights[name], one[name], rtol=0, atol=1e-5, msg=f"rank {rank}: {name}")
        assert found(two, rank)["best"] == pytest.approx(expected, abs=1e-5)
    scope["train"]("halved", ONE_PROCESS, batch_size=3)
    halved = load_file(tmp_path / "halved-0.safetensors")
    assert max(float((one[name] - halved[name]).abs().max()) for name in one) > 1e-3, "the batch size matters"


def test_all_workers_end_with_the_same_weights_also_with_batch_normalisation(two):
    for name in ("two", "whole", "stopped"):
        one, other = (load_file(two / f"{name}-{rank}.safetensors") for rank in (0, 1))
        assert all(torch.equal(value, other[key]) for key, value in one.items()), name


def test_the_metrics_are_written_once(two):
    assert [line["step"] for line in Run(two / "two").metrics()] == [1, 2, 3]
    assert found(two, 0)["best"] == found(two, 1)["best"]


def test_workers_that_were_stopped_go_on_bit_for_bit(two):
    """With dropout, which each of them draws for itself."""
    one, other = (load_file(two / f"{name}-1.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, other[key]) for key, value in one.items())
    assert Run(two / "whole").metrics() == Run(two / "stopped").metrics()
    assert found(two, 0)["drawn"] == [2], "two random states"


def test_what_workers_exchange(two):
    for rank in (0, 1):
        there = found(two, rank)
        assert there["gathered"] == ["rank 0 of 2", "rank 1 of 2"]
        assert there["broadcast"] == 5
        gradient = 3.0 * (1 + rank)  # of both workers' losses, 1 and 2 times the total
        assert there["total"] == [[3.0, 6.0], [gradient, gradient]]
        assert there["mean"] == {"a": 1.5, "b": -2.0}
    assert (found(two, 0)["shard"], found(two, 1)["shard"]) == ([0, 1, 2], [3, 4])


def test_one_process_exchanges_nothing(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with Workers.from_environment() as workers:
        assert workers == ONE_PROCESS == Workers(rank=0, world_size=1)
    value, net = object(), nn.Linear(2, 1)
    net(torch.ones(1, 2)).sum().backward()
    before = [parameter.grad.clone() for parameter in net.parameters()]
    workers.average_gradients(net.parameters(), weight=3)
    workers.share_weights(net)
    assert all(torch.equal(one, p.grad) for one, p in zip(before, net.parameters(), strict=True))
    assert workers.is_main
    assert workers.broadcast(value) is value
    assert workers.gather(value) == [value]
    assert workers.mean({"a": 0.1}) == workers.sum({"a": 0.1}) == {"a": 0.1}
    assert torch.equal(workers.shard(torch.arange(3)), torch.arange(3))


@pytest.mark.parametrize(("rows", "world_size"), [(7, 3), (3, 3), (8, 2)])
def test_the_shares_are_all_rows_once_and_nearly_equal(rows, world_size):
    shares = [Workers(rank, world_size).shard(torch.arange(rows)) for rank in range(world_size)]
    assert torch.equal(torch.cat(shares), torch.arange(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_fewer_rows_than_workers_are_refused():
    with pytest.raises(ValueError, match="a batch of 2 cannot be divided among 3 workers; raise batch_size, or start"):
        Workers(0, 3).shard(torch.arange(2))
