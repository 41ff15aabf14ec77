"""Random streams: each environment has its own."""

import torch
from segarena.envs.random import Streams


def test_every_environment_has_its_own_stream_whatever_stands_beside_it():
    many, one = Streams(5, torch.device("cpu")), Streams(1, torch.device("cpu"))
    many.seed(range(10, 15))
    one.seed([13])
    for _ in range(70):
        assert torch.equal(many.uniform(3)[3], one.uniform(3)[0])
        assert many.tick()[3] == one.tick()[0]


def test_streams_are_uniform_and_differ_between_seeds():
    streams = Streams(2000, torch.device("cpu"))
    streams.seed(range(2000))
    draws = streams.uniform(20)
    ticks = torch.stack([streams.tick() for _ in range(20)])
    for sample in (draws, ticks):
        counts = torch.histc(sample.float(), bins=10, min=0, max=1)
        assert ((counts / sample.numel() - 0.1).abs() < 0.01).all()
    assert len(torch.unique(draws)) == draws.numel()
    correlation = torch.corrcoef(torch.cat((draws, ticks.T), dim=1).T)
    assert (correlation - torch.eye(40)).abs().max() < 0.12


def test_only_the_streams_that_draw_move_on():
    streams = Streams(3, torch.device("cpu"))
    streams.seed([1, 2, 3])
    first = streams.uniform(2)
    streams.seed([1, 2, 3])
    env_ids = torch.tensor([1])
    assert torch.equal(streams.uniform(2, env_ids)[0], first[1])
    after = streams.uniform(2)
    assert torch.equal(after[[0, 2]], first[[0, 2]])
    assert not torch.equal(after[1], first[1])
