"""The one epoch loop of all networks."""

import math
import os
import signal

import pytest
import torch
from segarena.common import fitting
from segarena.common.finite import NotFiniteError
from segarena.common.fitting import descend, fit
from segarena.common.runs import Run
from segarena.common.stopping import Stopped, stopping_safely
from torch import Generator, nn
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import ReduceLROnPlateau


class StoppedError(Exception):
    """Error that ends a training too early."""


class Toy:
    """A regression with dropout; every epoch draws from its generator and from PyTorch's own.

    scores: of the epochs; None: minus the loss.
    """

    def __init__(self, folder, scores=None):
        self.run, self.scores = Run(folder), scores
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))
        self.optimizer = Adam(self.net.parameters(), lr=0.05)
        self.plateau = ReduceLROnPlateau(self.optimizer, mode="max", factor=0.5, patience=1)
        self.epochs_made, self.modes = 0, []

    def fit(self, epochs=6, **more):
        return fit(
            self.run,
            self.net,
            self.optimizer,
            name="toy",
            epochs=epochs,
            seed=7,
            train_epoch=self.train_epoch,
            validate=self.validate,
            state={"plateau": self.plateau},
            **more,
        )

    def train_epoch(self, net, generator: Generator):
        self.modes.append(self.net.training)
        x = torch.randn(8, 3, generator=generator)
        loss = (net(x) - x.sum(dim=1, keepdim=True)).square().mean()
        descend(self.optimizer, loss)
        self.epochs_made += 1
        return {"loss": loss.detach()}

    def validate(self, net):
        self.modes.append(net.training)
        x = torch.linspace(-1, 1, 12).view(4, 3)
        error = (net(x) - x.sum(dim=1, keepdim=True)).square().mean()
        score = -float(error) if self.scores is None else self.scores[self.epochs_made - 1]
        lr = self.optimizer.param_groups[0]["lr"]
        self.plateau.step(score)
        return score, {"error": error, "lr": lr}

    def weights(self):
        return {name: value.clone() for name, value in self.net.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# -- epochs --------------------------------------------------------------------------------------------------------


def test_the_best_epoch_is_kept_not_the_last(tmp_path):
    toy, seen = Toy(tmp_path, scores=[0.1, 0.5, 0.3, 0.5]), []
    validate = toy.validate
    toy.validate = lambda net: (seen.append(toy.weights()), validate(net))[1]
    best = toy.fit(epochs=4)
    assert best["epoch"] == 2, "of equals, the first"
    assert best["error"] == toy.run.metrics()[1]["toy/error"]
    assert same(toy.weights(), seen[1])
    assert not same(toy.weights(), seen[3])
    assert not toy.net.training


def test_an_epoch_trains_in_train_mode_and_is_judged_in_eval_mode_without_gradients(tmp_path):
    toy = Toy(tmp_path)
    validate = toy.validate

    def judge(net):
        assert not torch.is_grad_enabled()
        return validate(net)

    toy.validate = judge
    toy.fit(epochs=2)
    assert toy.modes == [True, False, True, False]


def test_every_epoch_is_one_line_of_the_log(tmp_path):
    toy = Toy(tmp_path)
    toy.fit(epochs=3)
    lines = toy.run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(set(line) == {"step", "toy/loss", "toy/error", "toy/lr", "toy/gradient_steps"} for line in lines)
    assert [line["toy/gradient_steps"] for line in lines] == [1, 2, 3]


def test_no_epoch_leaves_the_network_as_it_is(tmp_path):
    toy = Toy(tmp_path)
    before = toy.weights()
    assert toy.fit(epochs=0) == {"epoch": 0}
    assert same(toy.weights(), before)
    assert not toy.net.training


def test_patience_counts_epochs_without_a_better_score(tmp_path):
    toy = Toy(tmp_path, scores=[0.1, 0.2, 0.2, 0.1, 0.3, 0.0])
    assert toy.fit(epochs=6, patience=2)["epoch"] == 2
    assert toy.epochs_made == 4


def test_a_schedule_that_is_stepped_with_the_score_acts_on_the_next_epoch(tmp_path):
    toy = Toy(tmp_path, scores=[0.5, 0.4, 0.3, 0.2, 0.1, 0.0])
    toy.fit()
    rates = [line["toy/lr"] for line in toy.run.metrics()]
    assert rates == [0.05, 0.05, 0.05, 0.025, 0.025, 0.0125]


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_generator_alone(tmp_path):
    one, other = Toy(tmp_path / "one"), Toy(tmp_path / "other")
    torch.manual_seed(11)
    one.fit()
    drawn = torch.rand(1)
    torch.rand(99)
    other.fit()
    assert same(one.weights(), other.weights())
    torch.manual_seed(11)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_ends_the_training_though_the_loss_is(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)
    toy = Toy(tmp_path)
    train_epoch = toy.train_epoch

    def spoil(net, generator):
        scalars = train_epoch(net, generator)
        if toy.epochs_made == 3:
            with torch.no_grad():
                net[0].bias[4:6] = bad
        return scalars

    toy.train_epoch = spoil
    with pytest.raises(NotFiniteError, match=r"toy: 0.bias holds 2 numbers, of 16, .* in epoch 3; lower the learning"):
        toy.fit()
    assert toy.run.checkpoint().step == 2
    assert len(toy.run.metrics()) == 2


def test_a_signal_ends_the_training_after_the_epoch_and_it_goes_on_where_it_was(tmp_path):
    """Though the time for a checkpoint has not come."""
    whole, toy = Toy(tmp_path / "whole"), Toy(tmp_path / "stopped")
    whole.fit()
    train_epoch = toy.train_epoch

    def interrupted(net, generator):
        if toy.epochs_made == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return train_epoch(net, generator)

    toy.train_epoch = interrupted
    with pytest.raises(Stopped), stopping_safely():
        toy.fit()
    assert toy.run.checkpoint().step == 3
    again = Toy(tmp_path / "stopped")
    again.fit()
    assert again.epochs_made == 3
    assert same(again.weights(), whole.weights())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_number_that_is_not_finite_ends_the_training_and_is_named(tmp_path, bad):
    toy = Toy(tmp_path)
    train_epoch = toy.train_epoch
    toy.train_epoch = lambda net, generator: (
        train_epoch(net, generator) | ({"loss": bad} if toy.epochs_made == 3 else {})
    )
    with pytest.raises(
        ValueError, match=f"toy: loss is {bad} in epoch 3; lower the learning rate, or look for bad values"
    ):
        toy.fit()
    assert len(toy.run.metrics()) == 2


def test_a_score_that_is_not_finite_ends_the_training(tmp_path):
    with pytest.raises(ValueError, match="toy: score is nan in epoch 2"):
        Toy(tmp_path, scores=[0.1, math.nan]).fit(epochs=2)


# -- stopped and resumed -------------------------------------------------------------------------------------------


@pytest.fixture
def kept_often(monkeypatch):
    """A checkpoint after every epoch."""
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", -1.0)


@pytest.fixture
def whole(kept_often, tmp_path):
    """A training that was never stopped."""
    toy = Toy(tmp_path / "whole")
    toy.best = toy.fit()
    return toy


@pytest.mark.parametrize("epoch", range(1, 7))
@pytest.mark.parametrize("place", ["train_epoch", "validate", "log", "save"])
def test_a_training_that_was_stopped_goes_on_bit_for_bit(tmp_path, whole, place, epoch):
    def stop(toy):
        owner = toy if hasattr(toy, place) else toy.run
        original, calls = getattr(owner, place), []

        def stopping(*arguments):
            calls.append(arguments)
            done = original(*arguments)
            if len(calls) == epoch:
                raise StoppedError
            return done

        setattr(owner, place, stopping)

    stopped = Toy(tmp_path / "run")
    stop(stopped)
    with pytest.raises(StoppedError):
        stopped.fit()
    resumed = Toy(tmp_path / "run")
    assert resumed.fit() == whole.best
    assert resumed.epochs_made == 6 - (epoch if place == "save" else epoch - 1), "only what was lost is done again"
    assert same(resumed.weights(), whole.weights())
    assert resumed.run.metrics() == whole.run.metrics()


class Counter:
    """Anything with a state; `fit` asks no more of it."""

    def __init__(self):
        self.number, self.history = 0, torch.zeros(0)

    def count(self):
        self.number += 1
        self.history = torch.cat([self.history, torch.tensor([float(self.number)])])

    def state_dict(self):
        return {"number": self.number, "nested": {"history": self.history}}

    def load_state_dict(self, state):
        self.number, self.history = state["number"], state["nested"]["history"]


def test_whatever_has_a_state_goes_on_where_it_was(tmp_path, kept_often):
    for epochs in (2, 5):
        toy, counter = Toy(tmp_path), Counter()
        train_epoch = toy.train_epoch
        toy.train_epoch = lambda *given, counter=counter, train=train_epoch: (counter.count(), train(*given))[1]
        fit(
            toy.run,
            toy.net,
            toy.optimizer,
            name="toy",
            epochs=epochs,
            seed=7,
            train_epoch=toy.train_epoch,
            validate=toy.validate,
            state={"plateau": toy.plateau, "counter": counter},
        )
    assert toy.epochs_made == 3
    assert (counter.number, counter.history.tolist()) == (5, [1.0, 2.0, 3.0, 4.0, 5.0])


def test_patience_outlives_a_stop(tmp_path, kept_often):
    scores = [0.1, 0.5, 0.3, 0.2, 0.9, 0.9]
    first = Toy(tmp_path, scores)
    first.fit(epochs=3, patience=2)
    again = Toy(tmp_path, scores)
    again.epochs_made = 3
    assert again.fit(epochs=6, patience=2)["epoch"] == 2
    assert again.epochs_made == 4


def test_a_training_that_is_over_is_not_made_again(tmp_path, whole):
    again = Toy(whole.run.folder)
    assert again.fit() == whole.best
    assert again.epochs_made == 0
    assert same(again.weights(), whole.weights())
    assert again.run.metrics() == whole.run.metrics()


def test_without_a_checkpoint_a_training_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(fitting, "CHECKPOINT_SECONDS", math.inf)
    Toy(tmp_path).fit(epochs=2)
    assert not (tmp_path / "checkpoints").exists(), "the time between two checkpoints has not passed"
    again = Toy(tmp_path)
    again.fit(epochs=3)
    assert again.epochs_made == 3
    assert [line["step"] for line in again.run.metrics()] == [1, 2, 3]


def test_a_checkpoint_of_another_network_is_refused(tmp_path, kept_often):
    Toy(tmp_path).fit(epochs=1)
    other = Toy(tmp_path)
    other.net = nn.Linear(3, 1)
    other.optimizer = SGD(other.net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"the checkpoint of .* is a checkpoint of another architecture"):
        other.fit(epochs=2)


@pytest.mark.parametrize(("above", "best", "epochs"), [(0.0, 0, 3), (0.4, 2, 5)])
def test_the_first_best_epoch_must_exceed_what_is_asked(tmp_path, above, best, epochs):
    scores = [0.0, 0.5, 0.0, 0.0, 0.0, 0.0] if best else [0.0] * 6
    toy = Toy(tmp_path, scores=scores)
    assert toy.fit(patience=3, above=above)["epoch"] == best
    assert toy.epochs_made == epochs
