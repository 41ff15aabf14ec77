"""Fixtures of all tests."""

import os
import signal
from pathlib import Path

import pytest
import segarena  # noqa: F401 (registers the environments)
import torch
from device_police import DevicePolice

os.environ["OMP_NUM_THREADS"] = "1"  # for the commands and processes of the tests: another number means other last bits
torch.set_num_threads(1)  # the tests' tensors are small: a second thread costs more than it gives


def pytest_configure(config):
    """Files begin in the order of their collection: by number of tests, the long files, whose tests are few and are
    whole trainings, would begin last, and one process would wait for the other."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Files of this folder itself, the longest, come first."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session", autouse=True)
def cache_elsewhere(tmp_path_factory):
    """Nothing of a test lands in the user's cache; tests share one, so that the same case is prepared once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGARENA_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        yield


@pytest.fixture
def heard_signals():
    """No signal is ignored while the test runs, as SIGHUP is under nohup and SIGINT in the background of a shell."""
    heard = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.getsignal(number) for number in heard}
    for number, handler in heard.items():
        if before[number] is signal.SIG_IGN:
            signal.signal(number, handler)
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
