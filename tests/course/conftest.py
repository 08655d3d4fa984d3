"""An answer's process with bubblewrap, where that works, and without."""

import pytest

from tinyprune.course import isolation


@pytest.fixture(params=["bubblewrap", "without"])
def isolated(request, monkeypatch):
    """Whether bubblewrap is used."""
    if request.param == "bubblewrap" and isolation.problem():
        pytest.skip(isolation.problem())
    if request.param == "without":
        monkeypatch.setattr(isolation, "problem", lambda: "bubblewrap is not used in this test")
    return request.param == "bubblewrap"
