"""The smoke build as readers meet it: wide and narrow, by day and night, by keyboard, offline."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from abplib.core import paths

HTML = paths.root() / "book" / "_build" / "html"
PAGES = sorted(
    path.relative_to(HTML).as_posix()
    for pattern in ("*.html", "chapters/*.html")
    for path in HTML.glob(pattern)
    if path.stem not in ("index", "genindex", "search")
)
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = [
    pytest.mark.skipif(not PAGES, reason="no book is built: run make book PROFILE=smoke"),
    pytest.mark.skipif(not CHROMIUM, reason="there is no Chromium on this machine to read it in"),
]
SIZES = ((1280, 900), (390, 800))
AXE = {"preload": False, "resultTypes": ["violations"]}
"""Nothing is loaded again, and of rules that a page keeps no elements are listed."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page whose complaints and requests beyond the book are in `page.told`."""
    context = browser.new_context()
    page: Any = context.new_page()
    page.told = []
    page.on("pageerror", lambda error: page.told.append(str(error)))
    page.on("console", lambda m: page.told.append(m.text) if m.type == "error" else None)
    page.on("request", lambda r: page.told.append(r.url) if not _own(r.url) else None)
    yield page
    context.close()


def _own(url: str) -> bool:
    return url.startswith((HTML.as_uri(), "data:", "blob:"))


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_calm_accessible_and_alone(page: Any, name: str) -> None:
    for width, height in SIZES:
        page.set_viewport_size({"width": width, "height": height})
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto((HTML / name).as_uri())
            page.evaluate("window.MathJax?.startup?.promise?.then(() => 0)")
            page.evaluate(
                "Promise.allSettled(document.getAnimations().map(a => a.finished)).then(() => 0)"
            )
            where = f"{name} at {width} px, {scheme}"
            assert page.evaluate("document.documentElement.dataset.theme") == scheme
            wide = "[...document.querySelectorAll('.bd-article pre, .bd-article table')]"
            assert page.evaluate("document.documentElement.scrollWidth") <= width, where
            assert page.evaluate(f"{wide}.every(e => e.scrollWidth <= e.clientWidth + 1)"), where
            silent = "[...document.images].filter(i => !i.alt.trim()).map(i => i.src)"
            assert page.evaluate(silent) == [], where
            assert (
                page.locator("input[type=search]:visible, .search-button__button:visible").count()
                == 1
            )
            found = [
                f"{rule['id']}: {node['html'][:200]}"
                for rule in Axe().run(page, options=AXE).response["violations"]
                if rule["impact"] in ("serious", "critical")
                for node in rule["nodes"]
            ]
            assert not found, f"{where}: {found}"
    assert page.told == []


def test_the_explorer_goes_by_keyboard(page: Any) -> None:
    path = HTML / "chapters" / "08_explorer.html"
    assert path.stat().st_size < 4e6
    page.goto(path.as_uri())
    said, reads = page.locator(".abp-said"), page.locator(".abp-slider output")
    before, box = reads.text_content(), page.locator("rect.proxy").get_attribute("x")
    page.locator(".abp-slider input").focus()
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    assert reads.text_content() == "layer 1" != before
    assert page.locator("rect.proxy").get_attribute("x") != box
    page.locator(".abp-words input:checked").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".abp-stage canvas").is_visible()
    assert "The map is that of" in said.text_content()
    told = page.locator(".abp-told").text_content()
    page.locator(".abp-samples input:checked").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".abp-told").text_content() != told
    page.locator(".abp-kinds input").first.focus()
    page.keyboard.press("Space")
    assert page.locator("rect.exact").count() == 0
    assert page.told == []


def test_without_scripts_the_first_sample_stands(browser: Browser) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto((HTML / "chapters" / "08_explorer.html").as_uri())
    assert page.locator(".abp-told").text_content()
    assert page.locator(".abp-stage rect.proxy").count() == 1
    assert page.locator(".abp-edits img").count() >= 9
    assert page.locator(".abp-controls *").count() == 0
    context.close()


def test_what_a_chapter_offers_is_there() -> None:
    for path in HTML.glob("chapters/*.html"):
        text = path.read_text(encoding="utf-8")
        files = {part.split('"')[0] for part in text.split('href="../files/')[1:]}
        assert f"{path.stem}/{path.stem}.ipynb" in files
        assert all((HTML / "files" / Path(name)).stat().st_size for name in files)


def test_a_drawing_knows_the_night() -> None:
    drawings = list(HTML.glob("files/*/figures/*.svg"))
    assert drawings
    assert all("prefers-color-scheme:dark" in path.read_text(encoding="utf-8") for path in drawings)
