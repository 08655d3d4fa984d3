"""Locks: who waits, and who is sent away; and where files go that can be made again."""

import os
import sys
import threading
from pathlib import Path

import pytest

from tinyprune.errors import UsageError
from tinyprune.io.files import cache_directory, locked, replace_file


def test_one_who_waits_comes_in_when_the_other_leaves_and_one_who_does_not_is_sent_away(tmp_path):
    inside, lock = threading.Event(), tmp_path / "lock"

    def come_in():
        with locked(lock, wait=True):
            inside.set()

    second = threading.Thread(target=come_in)
    with locked(lock, wait=False):
        said = rf"another process \({os.getpid()} on .*, since 20.*\) is at work in {tmp_path}; wait for it"
        with pytest.raises(UsageError, match=said), locked(lock, wait=False):
            pass
        second.start()
        assert not inside.wait(0.3)
    assert inside.wait(10)
    second.join()


FOLDERS = [("linux", {}, "~/.cache/tinyprune"), ("linux", {"XDG_CACHE_HOME": "/scratch"}, "/scratch/tinyprune")]
FOLDERS += [("darwin", {"XDG_CACHE_HOME": "/scratch"}, "~/Library/Caches/tinyprune")]
FOLDERS += [("win32", {"LOCALAPPDATA": "/Local"}, "/Local/tinyprune/Cache")]
FOLDERS += [("win32", {}, "~/AppData/Local/tinyprune/Cache")]
FOLDERS += [("linux", {"TINYPRUNE_CACHE": "/mine", "XDG_CACHE_HOME": "/scratch"}, "/mine")]
FOLDERS += [("darwin", {"TINYPRUNE_CACHE": "~/mine"}, "~/mine")]


@pytest.mark.parametrize(("platform", "variables", "folder"), FOLDERS)
def test_the_cache_is_the_users(platform, variables, folder, monkeypatch):
    for name in ("TINYPRUNE_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_directory() == Path(folder).expanduser()


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    """As in a run that a stranger has packed."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "run.safetensors.tmp").symlink_to(tmp_path / "victim")
    replace_file(tmp_path / "run.safetensors", b"new")
    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "run.safetensors").read_bytes() == b"new" and not (tmp_path / "run.safetensors").is_symlink()
