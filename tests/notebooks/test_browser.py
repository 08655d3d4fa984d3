"""Two notebooks in a real browser: all cells run, pictures appear, and sliders change them."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress

import pytest
from folder import FOLDER, executor

from tinyprune.errors import install_command

pytest.importorskip("selenium", reason=f"needs {install_command('browser')}")
pytest.importorskip("jupyterlab", reason=f"needs {install_command('notebooks')}")

from nbconvert import HTMLExporter
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="needs chromium and chromium-driver"),
]
# All cells are in the page, not only those on the screen; no news or updates are fetched.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
SECONDS = executor().SECONDS
STDERR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"
FLAGS = ["headless=new", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "disable-background-networking"]
FLAGS += ["disable-component-update", "disable-sync", "window-size=1400,1000"]
FLAGS += ["no-sandbox"]  # needed as root, in a container


def wait_for(condition, what, seconds=120):
    """The first true value of `condition`, asked again and again for so long, which is long on an idle machine."""
    end = time.monotonic() + seconds
    while True:
        with suppress(WebDriverException, OSError):
            if value := condition():
                return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.2)


@contextmanager
def server(directory):
    """JupyterLab on a free port of this machine, with the notebooks copied into `directory`; yields its address."""
    shutil.copytree(FOLDER, directory / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints", "assignments"))
    settings = directory / "settings"
    settings.mkdir()
    (settings / "overrides.json").write_text(json.dumps(SETTINGS))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    options = {
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.root_dir": directory / "notebooks",
        "IdentityProvider.token": token,
        "LabApp.app_settings_dir": settings,
        "ServerApp.allow_root": True,
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", *(f"--{k}={v}" for k, v in options.items())]
    # Settings of the person who runs the tests must not matter.
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(directory / "config"), "JUPYTER_NO_CONFIG": "1"}
    with (directory / "jupyter.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            address = f"http://127.0.0.1:{port}"
            api = f"{address}/api?token={token}"
            wait_for(lambda: urllib.request.urlopen(api, timeout=5).status == 200, "the server")
            yield f"{address}/lab/tree/{{name}}.ipynb?token={token}&reset"
        finally:
            process.terminate()
            process.wait(30)


class Page:
    def __init__(self, driver, address, name):
        self.driver = driver
        driver.get(address.format(name=name))
        wait_for(lambda: len(self.prompts()) > 5, f"the cells of {name}")

    def find(self, css):
        return self.driver.find_elements(By.CSS_SELECTOR, f".jp-NotebookPanel {css}")

    def each(self, css, value):
        """Return what a JavaScript expression gives for each element `e` of the notebook that matches."""
        return self.driver.execute_script(
            f"return [...document.querySelectorAll('.jp-NotebookPanel {css}')].map(e => {value})"
        )

    def prompts(self):
        """Return the prompts of the code cells: [3]: done, [*]: waiting, [ ]: never run."""
        return self.each(".jp-CodeCell .jp-InputArea-prompt", "e.textContent")

    def pictures(self):
        """Return width and height of each picture on the page, (0, 0) for a broken one."""
        size = "e.complete && e.naturalWidth ? [e.clientWidth, e.clientHeight] : [0, 0]"
        return self.each(".jp-OutputArea-output img", size)

    def menu(self, *entries):
        """Choose from the menu bar, such as ("Run", "Run All Cells")."""
        for entry in entries:
            text = f"[contains(@class, 'lm-Menu') and starts-with(normalize-space(text()), '{entry}')]"
            path = (By.XPATH, f"//li[contains(@class, 'lm-Menu')][.//div{text}]")
            wait_for(lambda path=path: self.driver.find_elements(*path), f"the menu entry {entry}")[-1].click()

    def run_all(self):
        """Clear all outputs and run all cells. Raises AssertionError if one fails."""
        # The kernel may still be starting, and the page shows the committed outputs.
        wait_for(lambda: self.find(".jp-Notebook-ExecutionIndicator[data-status='idle']"), "the kernel")
        self.menu("Edit", "Clear Outputs of All Cells")
        self.menu("Run", "Run All Cells")
        wait_for(lambda: "[*]:" in self.prompts(), "the first cell to run")
        while left := self.not_run():
            # A slow machine needs longer for all of them; one cell has the time that it has without a browser.
            wait_for(lambda left=left: self.errors() or self.not_run() < left, f"the first of {left} cells", SECONDS)
            assert not self.errors(), self.errors()[0]

    def not_run(self):
        """How many code cells have not run yet."""
        # An unsolved exercise fails, and takes the stars from the cells below it, although they run afterwards.
        return sum(not any(c.isdigit() for c in prompt) for prompt in self.prompts())

    def errors(self):
        """Return the errors of failed cells, which JupyterLab shows like standard error; exercises are to fail."""
        errors = [e.text for e in self.find(STDERR) if "Traceback (most recent call last)" in e.text]
        return [text for text in errors if "NotImplementedError: write " not in text]

    def move_slider(self, output):
        """Press End on the first slider of an output, until it has moved."""
        handle = output.find_element(By.CSS_SELECTOR, ".noUi-handle")
        before = handle.get_attribute("aria-valuenow")

        def moved():
            # Pictures above that are still being drawn push it down, and the click misses it.
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
            ActionChains(self.driver).click(handle).send_keys(Keys.END).perform()
            return handle.get_attribute("aria-valuenow") != before

        wait_for(moved, "the slider to move")


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """A headless browser with an empty profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(f"--{flag}")
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, service) as driver:
        yield driver


@pytest.fixture(scope="module")
def lab(tmp_path_factory, driver):
    """Opens a notebook in JupyterLab."""
    with server(tmp_path_factory.mktemp("lab")) as address:
        yield lambda name: Page(driver, address, name)


@pytest.mark.parametrize("name", ["00_tour", "04_hard_concrete_gate"])
def test_a_reader_runs_it_and_moves_the_sliders(lab, name):
    page = lab(name)
    folded = wait_for(lambda: page.find("details")[2:] and page.find("details"), "three folded answers")
    assert not any(answer.get_attribute("open") for answer in folded)
    before = page.pictures()
    page.run_all()

    def all_pictures():
        found = page.pictures()
        return found if len(found) >= len(before) and (0, 0) not in map(tuple, found) else None

    after = wait_for(all_pictures, f"{len(before)} pictures")
    assert all(width > 100 and height > 50 for width, height in after)
    widget = page.find(".jp-OutputArea-output .widget-interact")[0]

    def shown():
        texts = [text.text for text in widget.find_elements(By.CSS_SELECTOR, ".jp-RenderedText")]
        return widget.find_element(By.CSS_SELECTOR, "img").get_attribute("src"), *texts

    before = wait_for(shown, "the picture below the sliders")
    page.move_slider(widget)

    def followed():  # a text beside the picture as well, where there is one
        now = shown()
        return len(now) == len(before) and all(a != b for a, b in zip(now, before, strict=True))

    wait_for(followed, "all to follow the slider")


def pictures_of(sliders):
    return [img.get_attribute("src") for img in sliders.find_elements(By.TAG_NAME, "img") if img.is_displayed()]


def test_sliders_move_on_a_page_without_a_kernel_and_do_not_disturb_each_other(driver, tmp_path):
    source = tmp_path / "00_sliders.py"
    draw = "lambda n, wide=True: (plt.figure(figsize=(2 + wide, 2)), plt.plot([0, n]), plt.show(), print('n =', n))"
    cells = ["%matplotlib inline\nimport matplotlib.pyplot as plt\nfrom tinyprune.notebook import sliders"]
    cells += [f"draw = {draw}\nsliders(draw, n=(0, 4), wide=[True, False])\nsliders(draw, n=[1, 5], wide=[True])"]
    source.write_text("\n\n".join(f"# %%\n{cell}" for cell in cells), encoding="utf-8")
    page = source.with_suffix(".html")
    page.write_text(HTMLExporter().from_notebook_node(executor().run(source))[0], encoding="utf-8")
    driver.get(page.as_uri())
    first, second = driver.find_elements(By.CLASS_NAME, "sliders")
    before = pictures_of(first), pictures_of(second)
    n, wide = first.find_elements(By.TAG_NAME, "input")
    assert "n = 2" in first.text and n.get_attribute("aria-valuetext") == "2"
    n.send_keys(Keys.END)
    assert "n = 4" in first.text and n.get_attribute("aria-valuetext") == "4"
    moved = pictures_of(first)
    wide.send_keys(Keys.ARROW_RIGHT)
    assert len({*before[0], *moved, *pictures_of(first)}) == 3
    assert pictures_of(second) == before[1] and "n = 1" in second.text


def test_sliders_move_on_the_site(driver, site):
    driver.get((site / "chapters" / "00_tour.html").as_uri())
    sliders = driver.find_element(By.CLASS_NAME, "sliders")
    (before,) = pictures_of(sliders)
    sliders.find_element(By.TAG_NAME, "input").send_keys(Keys.END)
    (after,) = pictures_of(sliders)
    assert before != after
