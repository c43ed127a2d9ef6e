"""The page in a real headless Chromium. Where there is none: apt-get install chromium-headless-shell.

CHROMIUM_BIN names another browser; with REQUIRE_BROWSER set, having none is a failure and not a skip.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_serve import Served, served
from tiny_run import Tiny

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
PHONE = {"width": 360, "height": 740}
DESK = {"width": 1100, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = os.environ.get("CHROMIUM_BIN") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("REQUIRE_BROWSER"):
        pytest.fail(f"REQUIRE_BROWSER is set and there is none of {', '.join(BROWSERS)}")
    if found is None:
        pytest.skip(f"there is none of {', '.join(BROWSERS)}; CHROMIUM_BIN may name one")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as engine:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        browser = engine.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service over its own copy of the tiny run, with two documents that would be markup anywhere else."""
    folder = tmp_path_factory.mktemp("page")
    copied = tiny.copy(folder)
    with served(copied.folder / "index", folder) as running:
        markup = "<img src=x onerror=\"document.title='broken'\"> anchor <b>anchor</b> tide & 'crew'"
        documents = [{"id": f"<i>markup</i>-{n}", "text": markup, "labels": ["it's <u>sea</u>"]} for n in range(2)]
        with running.client() as client:
            assert client.post("/documents", json={"documents": documents}).status_code == 200
        yield running


class Opened:
    """The page, and what went wrong in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page = page
        self.errors: list[str] = []
        self.elsewhere: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: request.url.startswith(address) or self.elsewhere.append(request.url))
        page.goto(address)
        page.wait_for_selector("#topics li")

    def search(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")
        self.until(lambda: self.page.title().startswith(text))
        self.settle()

    def settle(self) -> None:
        self.page.wait_for_selector("body:not(.busy)")

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what the page's own policy lets no script of the test wait for."""
        deadline = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < deadline
            self.page.wait_for_timeout(20)

    def ids(self) -> list[str]:
        found: list[str] = self.page.locator(".hit h3").all_inner_texts()
        return found

    def said(self) -> str:
        text: str = self.page.inner_text("#status")
        return text.lower()

    def width(self) -> int:
        wide: int = self.page.evaluate("document.documentElement.scrollWidth")
        return wide


@pytest.fixture
def opened(browser: Any, service: Served) -> Iterator[Opened]:
    context = browser.new_context(viewport=DESK)
    page = Opened(context.new_page(), service.address)
    yield page
    assert page.errors == []
    assert page.elsewhere == []
    context.close()


def answer(service: Served, **query: Any) -> dict[str, Any]:
    with service.client() as client:
        found: dict[str, Any] = client.post("/search", json=query).json()
        return found


def test_a_typed_text_shows_its_hits_with_bars_marked_words_and_topics(opened: Opened, service: Served) -> None:
    opened.search("ship storm")
    expected = answer(service, text="ship storm")["hits"]
    assert opened.ids() == [hit["id"] for hit in expected]
    assert "10 hits" in opened.said()
    bars = opened.page.eval_on_selector_all(".bar i", "bars => bars.map(bar => bar.getBoundingClientRect().width)")
    assert len(bars) == 10
    assert all(width > 0 for width in bars)
    assert bars == sorted(bars, reverse=True)
    marked = {word.lower() for word in opened.page.locator(".hit mark").all_inner_texts()}
    assert marked == {"ship", "storm"}
    assert opened.page.locator(".hit .topic").first.inner_text().startswith("Topic ")


def test_a_tag_filters_by_its_value_and_the_filter_can_be_taken_away(opened: Opened, service: Served) -> None:
    opened.search("ship bread moon")
    opened.page.fill("#filter", "labels = 'kitchen'")
    opened.page.press("#filter", "Enter")
    opened.page.wait_for_selector(".filter.on")
    opened.settle()
    hits = answer(service, text="ship bread moon", filter="labels = 'kitchen'")["hits"]
    assert opened.ids() == [hit["id"] for hit in hits]
    opened.page.click("#no-filter")
    opened.page.wait_for_selector(".filter:not(.on)")
    opened.settle()
    assert opened.ids() == [hit["id"] for hit in answer(service, text="ship bread moon")["hits"]]
    tag = opened.page.locator(".hit button.tag").first
    label = tag.inner_text()
    tag.click()
    opened.page.wait_for_selector(".filter.on")
    opened.settle()
    assert opened.page.input_value("#filter") == f"labels = '{label}'"
    assert all(tags == label for tags in opened.page.locator(".hit button.tag").all_inner_texts())


def test_a_filter_that_cannot_be_read_is_said_and_mended_without_leaving(opened: Opened) -> None:
    opened.search("ship")
    opened.page.fill("#filter", "colour = 'red'")
    opened.page.press("#filter", "Enter")
    opened.page.wait_for_selector("#problem:not([hidden])")
    assert "no column 'colour'" in opened.page.inner_text("#problem-text")
    assert opened.ids() == []
    opened.page.click("#no-filter")
    opened.page.wait_for_selector(".hit")
    assert opened.page.is_hidden("#problem")


def test_the_ranking_can_be_switched(opened: Opened, service: Served) -> None:
    opened.search("ship storm")
    opened.page.check("input[value=hamming]", force=True)
    opened.until(lambda: "hamming" in opened.page.url)
    opened.settle()
    expected = answer(service, text="ship storm", rank="hamming")["hits"]
    assert opened.ids() == [hit["id"] for hit in expected]


def test_more_like_this_shows_the_neighbours_of_a_hit_and_going_back_the_search(
    opened: Opened, service: Served
) -> None:
    opened.search("ship storm")
    before = opened.ids()
    opened.page.click(".hit:nth-child(3) [data-act=more]")
    opened.page.wait_for_selector("#like:not([hidden])")
    opened.settle()
    assert opened.page.inner_text("#like-id") == before[2]
    assert opened.ids() == [hit["id"] for hit in answer(service, id=before[2])["hits"]]
    opened.page.go_back()
    opened.page.wait_for_selector("#like", state="hidden")
    opened.settle()
    assert opened.ids() == before


def test_near_duplicates_are_those_within_a_few_bits(opened: Opened, service: Served) -> None:
    opened.search("ship storm")
    first = opened.ids()[0]
    opened.page.click(".hit:nth-child(1) [data-act=twins]")
    opened.page.wait_for_selector(".twins li, .panel p:text('No other')")
    near = [hit["id"] for hit in answer(service, id=first, rank="hamming", k=50)["hits"] if hit["distance"] <= 1]
    assert opened.page.locator(".twins b").all_inner_texts() == near


def test_the_bits_of_query_and_hit_stand_beside_each_other(opened: Opened, service: Served) -> None:
    opened.search("ship bread storm")
    hits = answer(service, text="ship bread storm", explain=True)
    place, hit = max(enumerate(hits["hits"], 1), key=lambda one: one[1]["distance"])
    opened.page.click(f".hit:nth-child({place}) [data-act=bits]")
    assert opened.page.locator(".bits .bit").count() == 16
    assert opened.page.locator(".bits .bit.differs").count() == hit["distance"]
    assert f"{16 - hit['distance']} of 16 bits agree" in opened.page.inner_text(".panel")
    mine = opened.page.locator(".bits .bit .cell:nth-child(2).one").count()
    assert mine == bin(int(hits["code"], 16)).count("1")
    opened.page.click(f".hit:nth-child({place}) [data-act=bits]")
    assert opened.page.locator(".panel").count() == 0


def test_the_facts_are_those_of_the_index(opened: Opened) -> None:
    assert opened.page.inner_text("#facts-button") == "302 documents · 16 bits"
    opened.page.click("#facts-button")
    opened.page.wait_for_selector("#health dt")
    facts = opened.page.inner_text("#facts")
    assert all(
        word in facts for word in ("302", "16", "transformer", "Distinct codes", "Dead bits", "bytes a document")
    )


def test_a_query_without_a_known_word_has_no_hits_and_says_why(opened: Opened) -> None:
    opened.search("qqqq zzzz")
    assert "knows no word" in opened.said()
    assert opened.ids() == []
    assert opened.page.is_visible("#topics li >> nth=0")


def test_a_topic_is_a_search(opened: Opened) -> None:
    opened.page.click("#topics button >> nth=0")
    opened.page.wait_for_selector(".hit")
    assert len(opened.ids()) == 10


def test_markup_in_a_document_stays_text(opened: Opened) -> None:
    opened.search("anchor tide crew")
    opened.page.fill("#filter", "id like '%markup%'")
    opened.page.press("#filter", "Enter")
    opened.page.wait_for_selector(".filter.on")
    opened.settle()
    assert opened.ids() == ["<i>markup</i>-0", "<i>markup</i>-1"]
    assert "<img src=x onerror=" in opened.page.inner_text(".hit .text >> nth=0")
    assert opened.page.locator(".hit img, .hit i:not(.bar i), .hit u").count() == 0
    opened.page.locator(".hit button.tag").first.click()
    opened.until(lambda: opened.page.input_value("#filter").startswith("labels"))
    opened.settle()
    assert opened.ids() == ["<i>markup</i>-0", "<i>markup</i>-1"]
    assert opened.page.title() == "anchor tide crew · latentbits"


def test_everything_can_be_done_by_keyboard(opened: Opened) -> None:
    keyboard = opened.page.keyboard
    opened.page.evaluate("document.activeElement.blur()")
    keyboard.press("/")
    keyboard.type("ship storm")
    keyboard.press("Enter")
    opened.page.wait_for_selector(".hit")
    before = opened.ids()
    keyboard.press("ArrowDown")
    keyboard.press("ArrowDown")
    assert opened.page.evaluate("document.activeElement.dataset.id") == before[1]
    keyboard.press("b")
    assert opened.page.locator(".hit:nth-child(2) .bits").count() == 1
    keyboard.press("d")
    opened.page.wait_for_selector(".hit:nth-child(2) .panel[data-act=twins]")
    keyboard.press("m")
    opened.page.wait_for_selector("#like:not([hidden])")
    assert opened.page.inner_text("#like-id") == before[1]
    opened.settle()
    keyboard.press("Escape")
    opened.page.wait_for_selector("#like", state="hidden")
    opened.settle()
    assert opened.ids() == before


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_follows_the_colours_of_the_system(browser: Any, service: Served, scheme: str) -> None:
    context = browser.new_context(viewport=PHONE, color_scheme=scheme, is_mobile=True, has_touch=True)
    opened = Opened(context.new_page(), service.address)
    opened.search("anchor tide crew")
    opened.page.click(".hit:nth-child(1) [data-act=bits]")
    opened.page.click(".hit:nth-child(1) [data-act=twins]")
    opened.page.click("#facts-button")
    opened.page.wait_for_selector("#health dt")
    assert opened.width() == 360
    ground = opened.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(int(part) for part in ground.strip("rgb()").split(",")) / 3
    assert (brightness > 200) == (scheme == "light")
    assert contrast_of(opened.page, ".hit .text") >= 7
    assert contrast_of(opened.page, ".status") >= 4.5
    assert opened.errors == []
    context.close()


def contrast_of(page: Any, selector: str) -> float:
    """The contrast of an element's colour with the page's ground, as WCAG defines it."""
    colours = page.evaluate(
        "selector => [document.querySelector(selector), document.body].map((one, n) =>"
        " getComputedStyle(one)[n ? 'backgroundColor' : 'color'])",
        selector,
    )
    one, other = sorted((luminance(colour) for colour in colours), reverse=True)
    return (one + 0.05) / (other + 0.05)


def luminance(colour: str) -> float:
    shares = [int(part) / 255 for part in colour.strip("rgba()").split(",")[:3]]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_service_that_is_gone_is_said_and_asked_again_when_it_is_back(
    browser: Any, tiny: Tiny, tmp_path: Path
) -> None:
    context = browser.new_context(viewport=DESK)
    with served(tiny.folder / "index", tmp_path) as running:
        opened = Opened(context.new_page(), running.address)
        opened.search("ship storm")
        port = running.address.strip("/").rsplit(":", 1)[1]
        running.process.kill()
        running.process.wait()
        opened.page.fill("#text", "bread")
        opened.page.press("#text", "Enter")
        opened.page.wait_for_selector("#problem:not([hidden])")
        assert "the service does not answer" in opened.page.inner_text("#problem-text").lower()
    with served(tiny.folder / "index", tmp_path, "--port", port):
        opened.page.click("#retry")
        opened.page.wait_for_selector(".hit")
        assert len(opened.ids()) == 10
    context.close()


def test_a_service_with_a_token_asks_for_it(browser: Any, tiny: Tiny, tmp_path: Path) -> None:
    context = browser.new_context(viewport=DESK)
    with served(tiny.folder / "index", tmp_path, token="secret") as running:
        page = context.new_page()
        page.goto(running.address)
        page.wait_for_selector("#token:not([hidden])")
        page.fill("#token-text", "wrong")
        page.press("#token-text", "Enter")
        page.wait_for_selector("#problem:not([hidden])")
        assert "not the service's" in page.inner_text("#problem-text")
        page.fill("#token-text", "secret")
        page.press("#token-text", "Enter")
        page.wait_for_selector("#topics li")
        assert page.is_hidden("#token")
        page.fill("#text", "ship")
        page.press("#text", "Enter")
        page.wait_for_selector(".hit")
    context.close()
