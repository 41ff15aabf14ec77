"""Signals that ask a training to stop, and numbers that make it stop."""

import math
import os
import signal
import threading

import pytest
import torch
from segarena.common.finite import not_finite, not_finite_tensor
from segarena.common.stopping import Stopped, stop_asked, stop_if_asked, stopping_safely


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_first_signal_waits_for_a_safe_point_and_a_second_one_does_not(name, capsys, heard_signals):
    number = getattr(signal, name)
    before = signal.getsignal(number)
    with stopping_safely():
        stop_if_asked()
        os.kill(os.getpid(), number)
        assert stop_asked()
        assert f"{name}: stops when the next checkpoint is kept; once more stops at once" in capsys.readouterr().err
        with pytest.raises(Stopped) as stopped:
            stop_if_asked()
        assert (stopped.value.number, stopped.value.name) == (number, name)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
    assert not stop_asked()


def test_a_signal_that_the_process_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping_safely():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_training_in_a_thread_leaves_the_signals_alone():
    def train():
        with stopping_safely():
            seen.append(signal.getsignal(signal.SIGTERM))

    seen, before = [], signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [before]


def test_numbers_that_are_none_are_named():
    assert not_finite({"a": 1.0, "b": math.nan, "c": -math.inf}) == ["b is nan", "c is -inf"]
    assert not_finite_tensor({"a": torch.ones(2), "n": torch.arange(3), "empty": torch.zeros(0)}) is None
    assert not_finite_tensor({"a": torch.full((2,), 3e38)}) is None, "large is not infinite"
    assert not_finite_tensor({"a": torch.ones(2), "b": torch.tensor([1.0, math.nan, math.inf])}) == (
        "b holds 2 numbers, of 3, that are NaN or infinite"
    )
