"""The report page as a person meets it: headless Chromium, from the file system, wide and narrow, light and dark."""

import shutil

import pytest
from selenium import webdriver

from stages import report
from stages.config import load_config
from stages.context import Context
from tests.stages.finished_run import write_finished_run
from tests.stages.report_page.further_files import write_further_files
from tests.tiny import tiny_params

WIDTHS, SCHEMES = (1280, 400), ("light", "dark")
FIGURES = {
    "comparison-kl",
    "comparison-agreement",
    "variation-tasks",
    "downstream-mrpc",
    "downstream-sst-2",
    "downstream-wnli",
    "downstream-squad",
    "speed-ratios",
    "student-loss",
    "student-kd",
    "student-mlm",
    "student-validation-kl",
    "student-cos",
    "student-learning-rate",
    "teacher-loss",
    "cache-bytes",
    "cache-entropy-1",
    "cache-entropy-2",
    "cache-retained-mass-1",
    "cache-retained-mass-2",
}
TABLES = {
    *("this-run", "comparison", "variation", "task-scores", "task-figures"),
    *("cache-arrays", "cache-distributions", "speed", "speed-on-text", "speed-agreement"),
}

CONTRASTS = """
const channels = colour => colour.match(/[\\d.]+/g).map(Number);
const luminance = ([r, g, b]) => [r, g, b]
  .map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const behind = element => {
  for (; element; element = element.parentElement) {
    const colour = channels(getComputedStyle(element).backgroundColor);
    if (colour.length === 3 || colour[3] === 1) return colour;
  }
  throw new Error("no background");
};
const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const found = [];
while (texts.nextNode()) {
  const element = texts.currentNode.parentElement, words = texts.currentNode.textContent.trim();
  if (!words || !element.checkVisibility()) continue;
  const style = getComputedStyle(element);
  const colour = element.closest("svg") ? style.fill : style.color;
  const [a, b] = [luminance(channels(colour)), luminance(behind(element))].sort((x, y) => y - x);
  found.push([words, (a + 0.05) / (b + 0.05)]);
}
return found;
"""
"""Every visible piece of text with the contrast to what is behind it, as WCAG 2 computes it."""

OUTSIDE = """
return [...document.querySelectorAll("main *, header *")]
  .filter(e => e.checkVisibility() && !e.closest(".scroll, pre, svg"))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.outerHTML.slice(0, 80));
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> str:
    """Where the page of a run with everything lies."""
    artefacts = write_finished_run(tmp_path_factory.mktemp("browser"))
    write_further_files(artefacts)
    report.run(load_config(tiny_params()), Context(artefacts=artefacts))
    return (artefacts.report / "index.html").as_uri()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium without a window; its profile lies in a folder of its own."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed: the page is not looked at in a browser")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    window = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield window
    window.quit()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=lambda p: f"{p[0]}-{p[1]}")
def page(request, browser, address):
    """The page, freshly opened at one width in one colour scheme."""
    width, scheme = request.param
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")  # empties it
    browser.get(address)
    assert browser.execute_script("return [innerWidth, matchMedia('(prefers-color-scheme: dark)').matches]") == [
        width,
        scheme == "dark",
    ]
    return browser


def test_the_page_opens_silently_and_loads_nothing(page):
    assert page.get_log("browser") == []
    assert page.execute_script("return performance.getEntriesByType('resource').map(e => e.name)") == []


def test_every_figure_and_table_is_there_and_visible(page):
    sizes = page.execute_script(
        "return [...document.querySelectorAll('figure, table')].map(e => [e.id, e.checkVisibility(), e.clientHeight, "
        "(e.querySelector('svg') || e.rows[1]).getBoundingClientRect().height])"
    )
    assert {name for name, *_ in sizes} == FIGURES | TABLES
    assert all(visible and height > 50 and inner > 15 for _, visible, height, inner in sizes), sizes


def test_every_plot_has_readable_text_and_a_drawn_line(page):
    plots = page.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [f.id, "
        "Math.min(...[...f.querySelectorAll('text')].map(t => t.getBoundingClientRect().height)), "
        "f.querySelectorAll('text').length, "
        "[...f.querySelectorAll('path, use')].filter(p => p.getBoundingClientRect().width > 3).length, "
        "f.querySelector('figcaption').innerText.length, f.querySelector('[role=img]').ariaLabel.length])"
    )
    for name, smallest, texts, drawn, caption, label in plots:
        assert smallest >= 8, name
        assert min(texts, drawn) > 3, name
        assert min(caption, label) > 20, name


def test_nothing_makes_the_page_scroll_sideways(page):
    scroll, client = page.execute_script(
        "document.querySelector('details').open = true;"
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scroll <= client
    assert page.execute_script(OUTSIDE) == []


def test_all_text_stands_out_from_what_is_behind_it(page):
    page.execute_script("document.querySelector('details').open = true")
    contrasts = page.execute_script(CONTRASTS)
    assert len(contrasts) > 200
    assert [(words, round(ratio, 1)) for words, ratio in contrasts if ratio < 4.5] == []


def test_headings_lead_through_the_page_in_order(page):
    sections = page.execute_script("return [...document.querySelectorAll('section')].map(s => s.id)")
    assert sections == ["flow", "closeness", "downstream", "training", "cache", "size-and-speed", "load", "provenance"]
    links = page.execute_script("return [...document.querySelectorAll('nav a')].map(a => a.hash.slice(1))")
    assert links == sections
    stages = page.execute_script("return [...document.querySelectorAll('.steps .stage')].map(s => s.innerText)")
    assert stages == [
        "corpus",
        "tokenize",
        "teacher",
        "cache-teacher",
        "init-student",
        "train-student",
        "evaluate",
    ]
