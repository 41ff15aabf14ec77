"""One process at a time trains in a folder."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import time

import pytest
from segarena.common import locks
from segarena.common.locks import LOCK, LockedError, locked

PROCESSES = multiprocessing.get_context("fork")


def hold(folder, ready):
    with locked(folder):
        ready.set()
        time.sleep(60)


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of tmp_path / "run"."""
    ready = PROCESSES.Event()
    process = PROCESSES.Process(target=hold, args=(tmp_path / "run", ready))
    process.start()
    assert ready.wait(60)
    yield process
    process.kill()
    process.join()


def test_a_second_process_is_refused_by_name_with_the_way_on(tmp_path, other):
    with pytest.raises(LockedError) as refused, locked(tmp_path / "run"):
        pytest.fail("two processes hold the lock")
    said = str(refused.value)
    assert f"run' is being trained in by process {other.pid} on {socket.gethostname()}, since 20" in said
    assert f"wait until it ends, or stop it (kill {other.pid}) and continue with --resume {tmp_path / 'run'}" in said


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process_however_that_ends(tmp_path, other, number):
    os.kill(other.pid, number)
    other.join()
    assert (tmp_path / "run" / LOCK).exists(), "the file is left, the lock is not"
    with locked(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["process"] == os.getpid()
    assert not (tmp_path / "run" / LOCK).exists()


def test_a_block_in_the_same_process_is_refused_too_and_an_error_within_releases_the_lock(tmp_path):
    def fail():
        with locked(tmp_path):
            with pytest.raises(LockedError), locked(tmp_path):
                pass
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with locked(tmp_path):
        pass


def test_a_lock_whose_file_is_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Who opens the file just before its holder removes it must not hold a lock that nobody else sees."""
    lock, times = fcntl.flock, []

    def late(file, how):
        if not times:
            (tmp_path / LOCK).unlink()
        times.append(how)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path):
        assert len(times) == 2
        with pytest.raises(LockedError), locked(tmp_path):
            pass


def test_another_file_in_the_place_of_the_lock_is_not_removed(tmp_path):
    with locked(tmp_path):
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
    assert (tmp_path / LOCK).read_text() == "another's"


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def none(file, how):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with locked(tmp_path):
        assert "cannot be locked" in caplog.text
        assert "see to it that no other process trains in it" in caplog.text


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    said = r"file/run' cannot be written .*; change that, or choose another with --out"
    with pytest.raises(ValueError, match=said), locked(tmp_path / "file" / "run"):
        pass
