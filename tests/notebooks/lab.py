"""JupyterLab with a copy of the notebooks, and a real browser to read them."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from folder import FOLDER
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

# All cells are in the page, not only those on the screen; no news or updates are fetched.
SETTINGS = {
    "@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
}
STDERR = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']"


def browser_path() -> str | None:
    """Return the path of Chromium or Chrome, None if there is neither."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def wait_for(condition: Callable[[], object], seconds: float, what: str) -> object:
    """The first true value of `condition`, asked again and again for so long."""
    end = time.monotonic() + seconds
    while True:
        with suppress(WebDriverException, OSError):
            if value := condition():
                return value
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.2)


@contextmanager
def server(directory: Path) -> Iterator[str]:
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
    command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
    command += [f"--{key}={value}" for key, value in options.items()]
    # Settings of the person who runs the tests must not matter.
    environment = os.environ | {"JUPYTER_CONFIG_DIR": str(directory / "config"), "JUPYTER_NO_CONFIG": "1"}
    log = (directory / "jupyter.log").open("w")
    process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    try:
        address = f"http://127.0.0.1:{port}"
        api = f"{address}/api?token={token}"
        wait_for(lambda: urllib.request.urlopen(api, timeout=5).status == 200, 60, "the server")
        yield f"{address}/lab/tree/{{name}}.ipynb?token={token}&reset"
    finally:
        process.terminate()
        process.wait(30)
        log.close()


@contextmanager
def browser(directory: Path, width: int = 1400, height: int = 1000) -> Iterator[Chrome]:
    """A headless browser with an empty profile."""
    options = ChromeOptions()
    options.binary_location = browser_path()
    flags = ["headless=new", "disable-gpu", "disable-dev-shm-usage", "no-first-run", "disable-background-networking"]
    flags += ["disable-component-update", "disable-sync", "no-sandbox"]  # the last is needed as root, in a container
    for flag in (*flags, f"window-size={width},{height}", f"user-data-dir={directory / 'profile'}"):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """One notebook in the browser."""

    def __init__(self, driver: Chrome, address: str, name: str) -> None:
        self.driver = driver
        driver.get(address.format(name=name))
        wait_for(lambda: len(self.cells()) > 5, 90, f"the cells of {name}")

    def find(self, css: str) -> list[WebElement]:
        """Return all elements of the notebook that match."""
        return self.driver.find_elements(By.CSS_SELECTOR, f".jp-NotebookPanel {css}")

    def cells(self) -> list[WebElement]:
        """Return the code cells with content."""
        return [c for c in self.find(".jp-CodeCell") if c.find_elements(By.CSS_SELECTOR, ".jp-InputPrompt")]

    def prompts(self) -> list[str]:
        """Return the prompts of the code cells: [3]: done, [*]: waiting, [ ]: never run."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('.jp-NotebookPanel .jp-CodeCell .jp-InputArea-prompt')]"
            ".map(e => e.textContent)"
        )

    def menu(self, *entries: str) -> None:
        """Choose from the menu bar, such as ("Run", "Run All Cells")."""
        for entry in entries:
            xpath = (
                f"//li[contains(@class, 'lm-Menu')]"
                f"[.//div[contains(@class, 'lm-Menu') and starts-with(normalize-space(text()), '{entry}')]]"
            )
            found = wait_for(lambda: self.driver.find_elements(By.XPATH, xpath), 20, f"the menu entry {entry}")  # noqa: B023
            found[-1].click()

    def run_all(self, seconds: float = 300) -> None:
        """Clear all outputs and run all cells. Raises AssertionError if one fails."""
        # The kernel may still be starting, and the page shows the committed outputs.
        wait_for(lambda: self.find(".jp-Notebook-ExecutionIndicator[data-status='idle']"), 60, "the kernel")
        self.menu("Edit", "Clear Outputs of All Cells")
        self.menu("Run", "Run All Cells")
        wait_for(lambda: "[*]:" in self.prompts(), 30, "the first cell to run")

        def done() -> bool:
            # A cell that fails stops all others.
            return bool(self.errors()) or not any("*" in p for p in self.prompts())

        wait_for(done, seconds, "all cells to run")
        assert not self.errors(), self.errors()[0]
        never = [i for i, p in enumerate(self.prompts()) if not any(c.isdigit() for c in p)]
        assert not never, f"code cells {never} did not run"

    def errors(self) -> list[str]:
        """Return the errors of failed cells, which JupyterLab shows like standard error."""
        return [e.text for e in self.find(STDERR) if "Traceback (most recent call last)" in e.text]

    def pictures(self) -> list[tuple[int, int]]:
        """Return width and height of each picture on the page, (0, 0) for a broken one."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('.jp-NotebookPanel .jp-OutputArea-output img')]"
            ".map(i => i.complete && i.naturalWidth ? [i.clientWidth, i.clientHeight] : [0, 0])"
        )

    def move_slider(self, output: WebElement, key: str = Keys.END) -> None:
        """Press a key on the first slider of an output, until it has moved."""
        handle = output.find_element(By.CSS_SELECTOR, ".noUi-handle")
        before = handle.get_attribute("aria-valuenow")

        def moved() -> bool:
            # Pictures above that are still being drawn push it down, and the click misses it.
            self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", handle)
            ActionChains(self.driver).click(handle).send_keys(key).perform()
            return handle.get_attribute("aria-valuenow") != before

        wait_for(moved, 30, "the slider to move")
