"""Fixtures of all tests."""

import signal
from pathlib import Path

import pytest
import segarena  # noqa: F401 (registers the environments)
import torch
from device_police import DevicePolice

torch.set_num_threads(1)  # the tests' tensors are small: a second thread costs more than it gives


@pytest.fixture(autouse=True)
def cache_elsewhere(tmp_path_factory, monkeypatch):
    """Nothing of a test lands in the user's cache; tests share one, so that the same case is prepared once."""
    monkeypatch.setenv("SEGARENA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The commands leave the number of threads as it is."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def heard_signals():
    """No signal is ignored while the test runs, as SIGHUP is where the tests were started by nohup."""
    numbers = [signal.SIGTERM, signal.SIGHUP]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        if before[number] is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def police():
    """A pretended CUDA device while the test runs; at its end, nothing may have been refused."""
    with DevicePolice(watch="segarena") as police:
        yield police
    assert not police.errors, police.errors


@pytest.fixture
def liver_data():
    """Folder of three real liver CTs in the Decathlon's layout (no tumour labels)."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data" / "standins" / "Task03_Liver"
    if not folder.is_dir():
        pytest.skip("the real samples of ../shared/data are not here")
    return folder
