"""How a command ends: exit status, and what is printed on any console."""

import io
import sys

import numpy as np
import pytest
import torch
from segarena.agents.command_line import main
from segarena.agents.commands import list as list_command
from segarena.agents.exits import BUG, REFUSED, print_on_any_console


def fail_with(monkeypatch, error):
    def run(*arguments):
        raise error

    monkeypatch.setattr(list_command, "run", run)
    return main(["list"])


@pytest.mark.parametrize(
    "error", [TypeError("why"), KeyError("x"), RecursionError(), OverflowError(), RuntimeError("shape")]
)
def test_what_nothing_refuses_is_a_bug_with_its_traceback(monkeypatch, capsys, error):
    assert fail_with(monkeypatch, error) == BUG == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert type(error).__name__ in said
    assert "this is a bug of SegArena" in said.splitlines()[-1]


def too_large():
    try:
        np.zeros(2**50)
    except MemoryError as error:
        return error


def too_large_for_torch():
    try:
        torch.empty(2**60)
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    "make", [MemoryError, too_large, too_large_for_torch, lambda: torch.OutOfMemoryError("CUDA out of memory.")]
)
def test_lack_of_memory_is_a_refusal(monkeypatch, capsys, make):
    assert fail_with(monkeypatch, make()) == REFUSED == 2
    said = capsys.readouterr().err
    assert said.startswith("error: out of memory (")
    assert said.count("\n") == 1


def test_a_console_without_greek_letters_ends_nothing(monkeypatch):
    consoles = [io.TextIOWrapper(io.BytesIO(), encoding="ascii") for _ in range(2)]
    monkeypatch.setattr(sys, "stdout", consoles[0])
    monkeypatch.setattr(sys, "stderr", consoles[1])
    print_on_any_console()
    print("SPARS τ")
    print("θ", file=sys.stderr)
    for console, expected in zip(consoles, (b"SPARS ?\n", b"?\n"), strict=True):
        console.flush()
        assert console.buffer.getvalue() == expected
