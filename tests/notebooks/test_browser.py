"""Two notebooks in a real browser: all cells run, pictures appear, and sliders change them."""

import pytest

from tinyprune.errors import install_command

pytest.importorskip("selenium", reason=f"needs {install_command('browser')}")
pytest.importorskip("jupyterlab", reason=f"needs {install_command('notebooks')}")

from lab import Page, browser, browser_path, server, wait_for
from selenium.webdriver.common.by import By

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browser_path() is None, reason="needs chromium and chromium-driver"),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    directory = tmp_path_factory.mktemp("lab")
    with server(directory) as address, browser(directory) as driver:
        yield lambda name: Page(driver, address, name)


@pytest.mark.parametrize("name", ["00_tour", "04_hard_concrete_gate"])
def test_a_reader_runs_it_and_moves_the_sliders(lab, name):
    page = lab(name)
    folded = wait_for(lambda: page.find("details")[2:] and page.find("details"), 30, "three folded answers")
    assert not any(answer.get_attribute("open") for answer in folded)
    before = page.pictures()
    page.run_all()

    def all_pictures():
        """Return the pictures once there is one more below the sliders."""
        found = page.pictures()
        return found if len(found) > len(before) and (0, 0) not in map(tuple, found) else None

    after = wait_for(all_pictures, 30, f"more than {len(before)} pictures")
    assert all(width > 100 and height > 50 for width, height in after)
    widget = page.find(".jp-OutputArea-output .widget-interact")[0]

    def shown():
        text = widget.find_element(By.CSS_SELECTOR, ".jp-RenderedText").text
        return text, widget.find_element(By.CSS_SELECTOR, "img").get_attribute("src")

    text, picture = wait_for(shown, 30, "the picture below the sliders")
    assert text
    page.move_slider(widget)
    wait_for(lambda: shown()[0] != text and shown()[1] != picture, 30, "text and picture to follow the slider")
