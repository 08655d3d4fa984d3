"""The documentation site, built once."""

import subprocess
import sys

import pytest
from folder import FOLDER

from tinyprune.io.files import locked


@pytest.fixture(scope="session")
def site(tmp_path_factory, worker_id):
    """Build the site with every warning an error, links and anchors checked; of several workers one does."""
    pytest.importorskip("properdocs")
    shared = (tmp_path_factory.getbasetemp() / ("." if worker_id == "master" else "..")).resolve()
    place, checked = shared / "site", shared / "site-is-checked"
    with locked(shared / "site.lock", wait=True):
        if not checked.exists():
            command = ["properdocs", "build", "--strict", "-f", FOLDER / "site" / "properdocs.yml", "-d", place]
            done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            checked.touch()
    return place
