"""What tests of all rooms share."""

import os
import shutil
import signal
from pathlib import Path

# Tests run beside each other: a thread that waits for another has to let others have its processor, not to spin on it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# With two threads for NumPy's products in each of two workers, all tests take a tenth longer on two processors.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import numpy as np
import pytest
from command import do_stages, settings, write_text

from tinyprune.kernels.gpu import what_is_missing, why_unusable

# Examples are the same each time, and may take long on a busy machine.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

# Tests send Ctrl-C to programs that they start; a parent that ignores it, such as nohup, must not pass that on.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_is_kept_for_the_user(tmp_path_factory):
    """What small models write goes to a folder of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinyprune.method.texts.cache_directory", lambda: tmp_path_factory.getbasetemp())
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests that compile kernels first, and whole programs last.

    Of two workers one then compiles, the other begins with tests that need no kernels, and programs find them kept.
    """
    here = Path(__file__).parent
    compiling = {here / name for name in ("kernels/cpu", "kernels/test_contract.py", "gradcheck/test_catalogue.py")}
    programs = {here / name for name in ("training", "experiments", "method", "bench", "pretrained")}

    def turn(item: pytest.Item) -> int:
        places = {item.path, *item.path.parents}
        # The cases that the contract has for NumPy compile nothing.
        if compiling & places and "numpy" not in item.nodeid:
            return 0
        return 2 if programs & places or item.path.parent == here else 1

    items.sort(key=turn)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2110)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text, alone in its folder."""
    return write_text(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def finished(book: Path) -> Path:
    """A run with all stages, which tests must not change."""
    do_stages(book.parent / "finished", book, settings(), ["--target-heads=3"])
    return book.parent / "finished"


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory):
    """A headless browser with an empty profile."""
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("needs chromium and chromium-driver")
    flags = ["headless=new", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync", "window-size=1400,1000"]
    flags += ["no-sandbox"]  # needed as root, in a container
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*flags, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
        yield driver


def pytest_report_header() -> str:
    """Say where the CUDA kernels run: their tests are not collected where they cannot."""
    if why_unusable() is None:
        return "CUDA kernels: on the GPU"
    return f"CUDA kernels: {what_is_missing() or 'on the emulator, with -m slow'}"
