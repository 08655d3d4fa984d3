"""What is installed and what is shown by an index: requirements, the sdist, the README."""

import json
import re
import shutil
import subprocess
import sysconfig
import tarfile
import tomllib
from email import message_from_string
from pathlib import Path

import pytest
from hatchling import build
from packaging.requirements import Requirement

import tinyprune

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PACKAGE = "\n".join(path.read_text("utf-8") for path in ROOT.glob("tinyprune/**/*.py"))
LINUX = {"sys_platform": "linux", "platform_machine": "x86_64", "python_version": "3.12", "extra": ""}
APPLE = LINUX | {"sys_platform": "darwin", "platform_machine": "arm64"}
PYODIDE = LINUX | {"sys_platform": "emscripten", "platform_machine": "wasm32"}


def needed(environment: dict[str, str]) -> dict[str, Requirement]:
    """The requirements without extras that apply there, by name; none may apply twice."""
    found = [Requirement(line) for line in PROJECT["dependencies"]]
    apply = [r for r in found if r.marker is None or r.marker.evaluate(environment)]
    assert len({r.name for r in apply}) == len(apply)
    return {r.name: r for r in apply}


def test_the_installed_command_works(tmp_path):
    """What `pip install` puts beside Python, started by itself and from another folder."""
    command = shutil.which("tinyprune", path=sysconfig.get_path("scripts"))
    assert command and PROJECT["scripts"] == {"tinyprune": "tinyprune.cli:main"}
    for arguments, status, out in (
        (["--version"], 0, f"tinyprune {tinyprune.__version__}\n"),
        (["list", "presets", "--json"], 0, None),
        (["eval", "nowhere"], 2, ""),
    ):
        done = subprocess.run([command, *arguments], capture_output=True, text=True, encoding="utf-8", cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert done.stderr == "" or (status and done.stderr.startswith("tinyprune: error: "))
        if out is None:
            assert "tiny" in [record["preset"] for record in json.loads(done.stdout)]
        else:
            assert done.stdout == out


def test_every_platform_has_a_numpy_that_computes():
    old_apple = APPLE | {"platform_machine": "x86_64"}
    assert all("2.0.0" in needed(there)["numpy"].specifier for there in (LINUX, PYODIDE, old_apple))
    apple = needed(APPLE)["numpy"].specifier
    assert ["2.3.5" in apple, "2.4.0" in apple, "2.5.0" in apple, "2.5.1" in apple] == [False, True, False, True]


def test_only_pyodide_goes_without_numba():
    everywhere = {"numpy", "matplotlib", "tqdm", "safetensors", "filelock"}
    assert needed(PYODIDE).keys() == everywhere
    assert needed(LINUX).keys() == needed(APPLE).keys() == everywhere | {"numba"}
    assert "3.8.3" not in needed(LINUX)["matplotlib"].specifier


def test_the_extras_that_messages_name_exist():
    named = set(re.findall(r"""(?:install_command\(|missing_extra\(.*, )["']([\w-]+)["']""", PACKAGE))
    assert {"cuda", "cuda12", "dask", "peers", "notebooks", "course"} <= named <= EXTRAS.keys()


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> tarfile.TarFile:
    folder = tmp_path_factory.mktemp("sdist")
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(ROOT)
        name = build.build_sdist(str(folder))
    with tarfile.open(folder / name) as archive:
        yield archive


def test_the_sdist_is_whole_and_small(sdist):
    """It has the package and its tests, but no executed chapters, pictures, cells or models, nor what tests these."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is not a git repository")
    tracked = {name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()}
    missing = tracked - {member.name.partition("/")[2] for member in sdist.getmembers()}
    left_out = r".*\.ipynb|data/results/.*(\.png|cells\.jsonl)|tests/notebooks/.*|tests/test_claims\.py|.*/play\.json"
    assert all(re.fullmatch(left_out, name) for name in missing) and len(missing) > 50
    assert Path(sdist.name).stat().st_size < 3e6


def test_the_release_names_one_version():
    """The package, the citation and the changelog."""
    changes = (ROOT / ".github" / "CHANGELOG.md").read_text("utf-8")
    assert re.search(r"^## ([\d.]+) ", changes, re.MULTILINE)[1] == tinyprune.__version__
    assert f"\nversion: {tinyprune.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")


def test_the_readme_on_an_index_has_no_relative_links(sdist):
    *_, info = (member for member in sdist.getmembers() if member.name.endswith("/PKG-INFO"))
    shown = message_from_string(sdist.extractfile(info).read().decode("utf-8"))
    text = (ROOT / "README.md").read_text("utf-8")
    here, there = (re.findall(r"\]\(([^)\s]+)\)", readme) for readme in (text, shown.get_payload()))
    assert len(here) == len(there) and any(not link.startswith("https:") for link in here)
    assert all(link.startswith("https://") for link in there)
    for link, absolute in zip(here, there, strict=True):
        assert absolute.endswith(link)
        if link.endswith(".png"):
            assert absolute.startswith("https://raw.githubusercontent.com/tinyprune/tinyprune/main/")
