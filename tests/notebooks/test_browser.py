"""Sliders in a real browser: they change pictures on a page without a kernel, and on the site."""

import pytest
from folder import executor

from tinyprune.errors import install_command

pytest.importorskip("selenium", reason=f"needs {install_command('browser')}")
pytest.importorskip("nbconvert", reason=f"needs {install_command('notebooks')}")

from nbconvert import HTMLExporter
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.browser


def pictures_of(sliders):
    return [img.get_attribute("src") for img in sliders.find_elements(By.TAG_NAME, "img") if img.is_displayed()]


def test_sliders_move_on_a_page_without_a_kernel_and_do_not_disturb_each_other(driver, tmp_path):
    source = tmp_path / "00_sliders.py"
    draw = "lambda n, wide=True: (plt.figure(figsize=(2 + wide, 2)), plt.plot([0, n]), plt.show(), print('n =', n))"
    cells = ["%matplotlib inline\nimport matplotlib.pyplot as plt\nfrom tinyprune.notebook import sliders"]
    cells += [f"draw = {draw}\nsliders(draw, n=(0, 4), wide=[True, False])\nsliders(draw, n=[1, 5], wide=[True])"]
    source.write_text("\n\n".join(f"# %%\n{cell}" for cell in cells), "utf-8")
    page = source.with_suffix(".html")
    page.write_text(HTMLExporter().from_notebook_node(executor().run(source))[0], "utf-8")
    driver.get(page.as_uri())
    first, second = driver.find_elements(By.CLASS_NAME, "sliders")
    before = pictures_of(first), pictures_of(second)
    n, wide = first.find_elements(By.TAG_NAME, "input")
    assert "n = 2" in first.text and n.get_attribute("aria-valuetext") == "2"
    n.send_keys(Keys.END)
    assert "n = 4" in first.text and n.get_attribute("aria-valuetext") == "4"
    moved = pictures_of(first)
    step = first.find_element(By.TAG_NAME, "button")
    assert (step.text, step.get_attribute("aria-label")) == ("step", "next n")
    step.click()  # after the last value comes the first
    assert "n = 0" in first.text and pictures_of(first) != moved
    n.send_keys(Keys.END)
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
