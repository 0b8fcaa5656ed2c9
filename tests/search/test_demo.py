"""The page in a browser: what a person does, and what is then to be seen."""

import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import socket
import threading
from urllib.parse import urlsplit

import browser as browsers
import numpy as np
import pytest
import screenshot
import serving
from PIL import Image

from unipt_jax.errors import UserError
from unipt_jax.search import demo, demo_answers, demo_page, guard, words

pytest.importorskip("gradio")

SENTENCE = "a woman with a black bag"


@pytest.fixture(scope="module")
def browser(url, tmp_path_factory):
    if browsers.CHROMIUM is None:
        pytest.skip("no chromium")
    with browsers.browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


@pytest.fixture
def page(browser, url):
    """The page as it opens; it must have complained of nothing when the test ends."""
    browser.size(1280, 800)
    browser.asked.clear()
    browser.said.clear()
    browser.open(url)
    browser.settled(browsers.INPUT)
    yield browser
    assert browser.said == []


def answered(page, kind):
    """Waits for an answer of that kind; its crops: number, rank, score and path."""
    page.until(f"document.querySelector('.answer')?.dataset.kind == '{kind}'")
    numbers = page.evaluate(
        "[...document.querySelectorAll('[data-number]')].map(e => e.dataset.number)"
    )
    columns = (page.text(f".hits {part}") for part in (".line b", ".score", ".path"))
    return list(zip(map(int, numbers), *columns, strict=True))


def expected(served, hits):
    """What the page should show of hits."""
    labels = [served.index[hit.number].label for hit in hits]
    return [
        (hit.number, str(hit.rank), f"{hit.score:.3f}", label)
        for hit, label in zip(hits, labels, strict=True)
    ]


def search(page, sentence=SENTENCE):
    page.type(browsers.INPUT, sentence)
    page.click("#search")
    return answered(page, "text")


def test_a_sentence_shows_what_the_searcher_finds_with_its_words(page, served):
    hits = served.by_text([SENTENCE], 10)[0]
    assert search(page) == expected(served, hits)
    effects = served.words(SENTENCE, hits).mean
    assert page.text(".word") == SENTENCE.split()
    shown = page.evaluate("[...document.querySelectorAll('.word')].map(e => e.title)")
    np.testing.assert_allclose([float(x) for x in shown], effects, atol=5.2e-4)
    assert page.text(".legend") == [f"{words.LEGEND} {words.TINTS}"]
    # All pictures have arrived, and in their own shape.
    assert page.evaluate(
        "[...document.querySelectorAll('.hits img')].every(e => e.naturalHeight == 60)"
    )


def test_enter_searches_too_and_an_example_is_a_click_away(page, served):
    page.type(browsers.INPUT, SENTENCE)
    page.command("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
    answered(page, "text")
    page.click(".examples button:nth-of-type(2)")
    page.until(f"document.querySelector('.word')?.innerText == 'a' && "
               f"document.querySelectorAll('.word').length == "
               f"{len(demo.EXAMPLES[1].split())}")  # fmt: skip
    hits = served.by_text([demo.EXAMPLES[1]], 10)[0]
    assert answered(page, "text") == expected(served, hits)


def test_a_click_on_a_crop_finds_more_like_it_and_there_is_a_way_back(page, served):
    before = search(page)
    number = before[2][0]
    page.click(f"[data-number='{number}']")
    assert answered(page, "like") == expected(served, served.like(number, 10))
    page.click("[data-back]")
    assert answered(page, "text") == before
    assert page.text("[data-back]") == []  # there was nothing before


def test_a_picture_finds_what_looks_like_it(page, served, tmp_path):
    file = shutil.copy(served.index.file(5), tmp_path / "mine.jpg")
    page.upload("#picker input", pathlib.Path(file))
    hits = served.by_picture([Image.open(file)], 10)[0]
    assert answered(page, "picture") == expected(served, hits)
    assert hits[0].number == 5


def test_nobody_comes_back_to_an_error(served):
    page = demo_answers.Page(served, limit=1)
    first, trail = page.text(SENTENCE, 5, ())
    second, trail = page.like(3, 5, trail)
    for _ in range(3):
        error, trail = page.text("", 5, trail)
        assert "more like" in error  # what one comes back to
    assert page.back(trail) == (second, trail[:-1])
    assert page.back(trail[:-1])[0] == first
    assert page.back(trail[:-2])[0] == page.back(())[0] == demo_page.EMPTY


def test_the_way_back_has_an_end(served):
    page, trail = demo_answers.Page(served, limit=1), ()
    for number in range(20 + 5):
        _, trail = page.like(number % 20, 1, trail)
    assert [view.asked for view in trail] == [
        served.index[number % 20].label for number in range(5, 25)
    ]


def test_a_picture_over_the_limit_is_refused_in_the_browser(page, tmp_path):
    (tmp_path / "large.jpg").write_bytes(bytes(600_000))
    page.upload("#picker input", tmp_path / "large.jpg")
    page.until("document.querySelector('.picked').innerText != ''")
    said = "large.jpg has 0.6 MB; choose one of at most 0.3 MB"
    assert page.text(".picked") == [said]
    assert page.text(".answer[data-kind=empty]") != []  # nothing was asked


def test_no_sentence_is_an_error_in_one_sentence(page):
    assert page.text(".answer[data-kind=empty]") != []
    page.type(browsers.INPUT, " ")
    page.click("#search")
    page.until("document.querySelector('.answer').dataset.kind == 'error'")
    said = "Write a sentence that describes a person, then search."
    assert page.text("[role=alert]") == [said]


def test_the_page_asks_nobody_but_its_own_server(page, url):
    search(page)
    elsewhere = {a for a in page.asked if not a.startswith((f"{url}/", "data:"))}
    assert elsewhere == set()


def test_odd_names_are_shown_as_they_are(page):
    page.evaluate("window.untouched = true")
    page.type("input[type=number]", "20")
    page.command("Input.dispatchKeyEvent", type="keyDown", key="Tab")
    found = search(page)
    assert len(found) == 20
    assert serving.ODD in [path for *_, path in found]
    assert page.evaluate("window.untouched && !document.querySelector('.path b')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_it_fits_the_window_and_can_be_read(page, size, scheme):
    page.size(*size, scheme)
    search(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0]
    contrast = """(element => {
      const parts = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
      const light = parts => {
        const [r, g, b] = parts.map(x => x / 255).map(
          x => x <= .04045 ? x / 12.92 : ((x + .055) / 1.055) ** 2.4);
        return .2126 * r + .7152 * g + .0722 * b + .05;
      };
      const style = getComputedStyle(element), opacity = Number(style.opacity);
      const paper = parts(getComputedStyle(document.body).backgroundColor);
      const ink = parts(style.color).map((x, i) => opacity * x + (1 - opacity) * paper[i]);
      const both = [light(ink), light(paper)];
      return Math.max(...both) / Math.min(...both);
    })"""
    for part in (".legend", ".path", ".score", "h1"):  # as accessible texts should
        assert page.evaluate(f"{contrast}(document.querySelector('{part}'))") > 4.5, (
            part
        )


def test_the_screenshot_of_the_readme_shows_the_page(page, url, tmp_path):
    file = tmp_path / "page.png"
    screenshot.take(page, url, file, SENTENCE)
    with Image.open(file) as shot:
        assert shot.size == screenshot.SIZE
        # The crops are at their place, in many colours.
        row = shot.convert("RGB").crop((134, 500, 1146, 600))
        assert len(row.getcolors(1 << 24)) > 50
    assert file.stat().st_size < 300_000


def test_ctrl_c_closes_the_page(served, capsys):
    told = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    told.start()
    demo.serve(served, port=0)
    told.join()
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first.startswith("the page is at http://127.0.0.1:")
    assert last == "the page is closed"
    assert signal.getsignal(signal.SIGINT) is before


def test_a_port_that_is_taken_is_a_sentence(served, url):
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(UserError, match=rf"port {port} .*--config\.demo\.port"):
        demo.serve(served, port=port)


@pytest.mark.parametrize("host", ["nowhere.invalid", "192.0.2.1"])
def test_a_host_that_is_not_this_machine_is_a_sentence(served, host):
    with pytest.raises(UserError, match=rf"cannot listen at {host}"):
        demo.serve(served, host=host, port=0)


@pytest.mark.parametrize("limit", [0, -1.5, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(served, limit):
    with pytest.raises(UserError, match=f"upload_mb is {limit}; give how many MB"):
        demo.serve(served, upload_mb=limit)


# --- the server ------------------------------------------------------------------------


@pytest.fixture
def behind(monkeypatch):
    """Puts an application in the place of Gradio's: it begins, then does as it is told."""

    def put(begins, answers):
        async def app(scope, receive, send):
            if scope["type"] == "http":
                await answers(send)
            else:
                begins()
                for what in ("startup", "shutdown"):
                    await receive()
                    await send({"type": f"lifespan.{what}.complete"})

        door = guard.Guard(app, names=["localhost"], limit=1)
        monkeypatch.setattr(demo, "application", lambda *_: door)

    return put


def fails():
    raise OSError("no room for a page")


def test_a_server_that_does_not_start_is_no_address(served, behind):
    behind(fails, None)
    with pytest.raises(RuntimeError, match="ended by itself .*no room for a page"):
        demo.serve(served, port=0)


def test_a_server_that_ends_by_itself_is_not_waited_for(served, behind, monkeypatch):
    async def ends(send):
        asyncio.get_running_loop().stop()

    behind(lambda: None, ends)
    running = demo.running

    @contextlib.contextmanager
    def visited(*args, **fields):
        with running(*args, **fields) as url:
            place = urlsplit(url)
            with socket.create_connection((place.hostname, place.port)) as visitor:
                visitor.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
                yield url

    monkeypatch.setattr(demo, "running", visited)
    with pytest.raises(RuntimeError, match="ended by itself .*loop stopped"):
        demo.serve(served, port=0)


def test_no_more_connections_than_may_bring_pictures_at_once(
    served, behind, monkeypatch
):
    async def answers(send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    behind(lambda: None, answers)
    monkeypatch.setattr(demo, "CONNECTIONS", 3)
    with demo.running(served) as url, contextlib.ExitStack() as idle:
        visitor, place = serving.Visitor(url), urlsplit(url)
        assert visitor.get("/")[0] == 200
        for _ in range(3):
            idle.enter_context(
                socket.create_connection((place.hostname, place.port), timeout=30)
            )
        assert visitor.get("/")[0] == 503
