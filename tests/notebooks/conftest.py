"""The documentation site, built once."""

import subprocess
import sys

import pytest
from folder import FOLDER


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site with every warning an error, links and anchors checked."""
    pytest.importorskip("properdocs")
    place = tmp_path_factory.mktemp("site")
    command = ["properdocs", "build", "--strict", "-f", FOLDER / "site" / "properdocs.yml", "-d", place]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return place
