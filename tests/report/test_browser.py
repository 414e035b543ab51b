"""The page in a browser: nothing is fetched, nothing is cut off, on phones, screens and paper."""

import io
import os
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--no-first-run"]
PHONE, SCREEN = (360, 740), (1280, 900)
OVERFLOWING = """() => [...document.querySelectorAll("main *")].filter(part => {
  const box = part.getBoundingClientRect();
  const scrolls = part.closest(".all, .joint, svg, .sr");
  return !scrolls && box.width > 0 && box.right > innerWidth + 0.5;
}).map(part => part.tagName + "." + part.className).slice(0, 5)"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs an installed Chromium; its path may stand in CHROMIUM")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, reports: dict[str, Path]) -> Iterator[Any]:
    """Opens a report; what the browser complains of or fetches fails the test."""
    contexts, complaints, requests = [], [], []

    def open_page(name: str, size: tuple[int, int], scheme: str) -> Any:
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("requestfailed", lambda request: complaints.append(request.url[:80]))
        page.on("request", lambda request: requests.append(request.url[:80]))
        page.goto(reports[name].as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not complaints
    outside = [url for url in requests if not url.startswith(("file:", "data:"))]
    assert not outside


def pixels(shot: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(shot)) as image:
        return np.asarray(image.convert("L"), dtype=float)


def check_layout(page: Any) -> None:
    width = page.evaluate("document.documentElement.scrollWidth")
    assert width <= page.evaluate("innerWidth")
    assert page.evaluate(OVERFLOWING) == []
    sizes = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert sizes
    assert min(sizes) > 0


QUICK = {("full", PHONE, "dark"), ("three", PHONE, "light"), ("three", SCREEN, "dark")}
QUICK |= {("minimal", PHONE, "light"), ("full", SCREEN, "light")}
VIEWS = [
    pytest.param(*view, marks=[] if view in QUICK else pytest.mark.slow)
    for view in product(("full", "three", "minimal"), (PHONE, SCREEN), ("light", "dark"))
]


@pytest.mark.parametrize(("name", "size", "scheme"), VIEWS)
def test_page_fits_and_is_seen(visit: Any, name: str, size: tuple[int, int], scheme: str) -> None:
    page = visit(name, size, scheme)
    check_layout(page)
    shot = pixels(page.screenshot())
    assert shot.std() > 10
    assert (np.median(shot) < 60) == (scheme == "dark")


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("three", PHONE),
        pytest.param("full", PHONE, marks=pytest.mark.slow),
        pytest.param("full", SCREEN, marks=pytest.mark.slow),
        pytest.param("three", SCREEN, marks=pytest.mark.slow),
    ],
)
def test_everything_unfolded_fits_too(visit: Any, name: str, size: tuple[int, int]) -> None:
    page = visit(name, size, "light")
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    check_layout(page)


@pytest.mark.parametrize("name", ["full", "three", "minimal"])
def test_paper(visit: Any, name: str) -> None:
    page = visit(name, (703, 1000), "dark")
    page.emulate_media(media="print")
    check_layout(page)
    shot = pixels(page.screenshot())
    assert np.median(shot) == 255  # white although the screen is dark
    assert shot.std() > 10
    assert not page.locator("nav").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_links_lead_to_sections(visit: Any) -> None:
    page = visit("full", SCREEN, "light")
    links = page.locator("nav a")
    assert links.count() == 13
    for link in links.all():
        assert page.locator(link.get_attribute("href")).count() == 1


CONTRAST = """() => {
  const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = part => {
    for (; part; part = part.parentElement) {
      const found = parse(getComputedStyle(part).backgroundColor);
      if (found.length === 3 || found[3] > 0) return found;
    }
    return [255, 255, 255];
  };
  const low = [];
  for (const part of document.querySelectorAll("main *:not(svg *)")) {
    if (![...part.childNodes].some(n => n.nodeType === 3 && n.textContent.trim())) continue;
    if (part.offsetParent === null) continue;
    const [a, b] = [light(parse(getComputedStyle(part).color)), light(behind(part))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) low.push([part.className, ratio]);
  }
  return low.slice(0, 5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_of_texts(visit: Any, scheme: str) -> None:
    assert visit("three", SCREEN, scheme).evaluate(CONTRAST) == []
