"""Locks: who waits, and who is sent away."""

import threading

import pytest

from tinyprune.files import locked

pytest.importorskip("fcntl", reason="this system has no such locks")


def test_one_who_waits_comes_in_when_the_other_leaves(tmp_path):
    inside = threading.Event()

    def come_in():
        with locked(tmp_path / "lock", wait=True):
            inside.set()

    second = threading.Thread(target=come_in)
    with locked(tmp_path / "lock", wait=False):
        second.start()
        assert not inside.wait(0.3)
    assert inside.wait(10)
    second.join()


def test_one_who_does_not_wait_is_sent_away(tmp_path):
    lock = tmp_path / "lock"
    with locked(lock, wait=False), pytest.raises(BlockingIOError), locked(lock, wait=False):
        pass
    with locked(lock, wait=False):
        pass
