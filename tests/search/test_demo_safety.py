"""What the page's server gives away to those who ask it otherwise than the page does."""

import asyncio
import contextlib
import json
import pathlib
import re
import socket
import sys
import threading
from urllib.parse import quote

import pytest
import serving

from unipt_jax.errors import UserError
from unipt_jax.search import demo, demo_answers, guard

pytest.importorskip("gradio")

JOIN = "/gradio_api/queue/join"


# --- routes ---------------------------------------------------------------------------


def all_routes(app):
    """Method and path of all that an application and those within it answer."""
    for route in app.routes:
        within = getattr(route, "original_router", getattr(route, "app", None))
        if hasattr(within, "routes"):
            yield from all_routes(within)
        else:
            yield from ((method, route.path) for method in route.methods)


def test_of_all_routes_that_gradio_has_the_few_of_the_page_are_open(served):
    application = demo.application(demo_answers.Page(served, limit=1))
    routes, open_routes = set(all_routes(application.app)), set()
    assert ("GET", "/gradio_api/file={path_or_url:path}") in routes
    for method, route in routes:
        path = re.sub(r"\{[^}]*\}", "etc", route)
        try:
            application.check(method, path, {"host": "localhost"})
        except guard.Refused as refused:
            assert refused.status == 404
        else:
            open_routes.add((method, route))
    assert open_routes == {
        ("GET", "/"),
        ("HEAD", "/"),
        ("GET", "/assets/{path:path}"),
        ("GET", "/static/{path:path}"),
        ("GET", "/favicon.ico"),
        ("GET", "/manifest.json"),
        ("GET", "/theme.css"),
        ("GET", "/gradio_api/theme.css"),
        ("GET", "/gradio_api/heartbeat/{session_hash}"),
        ("GET", "/gradio_api/queue/data"),
        ("GET", "/gradio_api/startup-events"),
        ("POST", "/gradio_api/queue/join"),
    }


WAYS = (
    "/gradio_api/file={}",
    "/gradio_api/file/{}",
    "/file={}",
    "/gradio_api//file={}",
    "/assets/{}",
    "/assets/../../../../../../../../../../../..{}",
    "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e{}",
    "/assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f..{}",
    "/assets/..\\..\\..\\..\\..\\..\\..\\..\\..{}",
    "/static/../../../../../../../../../../../..{}",
    "/static//{}",
    "/svelte/../../../../../../../../../../../..{}",
    "/gradio_api/custom_component/1/client/..{}/x",
    "/gradio_api/stream/a/b/1/..{}",
    "/gradio_api/proxy=file://{}",
    "/gradio_api/runs/..{}",
    "/?deep_link=../../../../../../..{}",
    "{}",
)


@pytest.mark.parametrize("way", WAYS)
def test_no_file_can_be_fetched_by_its_path(visitor, served, way):
    files = ["/etc/passwd", *(served.index.folder / n for n in ("index.json",))]
    files += [served.index.file(1), *served.index.folder.glob("*.npy"), __file__]
    for file in map(pathlib.Path, files):
        status, _, body = visitor.get(way.format(quote(str(file))))
        assert file.read_bytes()[:60] not in body
        assert status in (400, 403, 404)


def test_uploads_and_gradios_servers_are_not_there(visitor):
    kind = "multipart/form-data; boundary=x"
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nb'
    form += b"\r\n--x--\r\n"
    asked = json.dumps(dict(data="/", component_id=1, session_hash="a", fn_name="ls"))
    for path in (
        "upload",
        "component_server",
        "process_recording",
        "vibe-edit",
        "run/x",
    ):
        for body, content_type in ((form, kind), (asked.encode(), "application/json")):
            status, *_ = visitor.get(
                f"/gradio_api/{path}", "POST", body, Content_Type=content_type
            )
            assert status == 404, path


# --- events ---------------------------------------------------------------------------

FILE = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
ADDRESS = FILE | {"path": "http://127.0.0.1:1/a", "url": "http://127.0.0.1:1/a"}


@pytest.mark.parametrize("value", [FILE, ADDRESS, [FILE], [], {}])
def test_an_event_can_name_no_file_and_no_address(visitor, value):
    number = visitor.event("search", "click")
    assert visitor.join([value, 10, None], number)[0] == 400
    assert visitor.join(["a", value, None], number)[0] == 400
    assert visitor.join(["a", 10, value], number)[0] == 400
    assert visitor.join(["a", 10, None], number, event_data={"x": value})[0] == 400


def test_nothing_but_what_the_page_says_reaches_gradio():
    received, sent = [], []

    async def app(scope, receive, send):
        received.append(json.loads((await receive())["body"]))

    async def receive():
        return {"type": "http.request", "body": json.dumps(said).encode()}

    async def send(message):
        sent.append(message)

    event = {"data": ["a"], "event_data": {"number": 1}, "fn_index": 2}
    event |= {"trigger_id": 3, "session_hash": "b"}
    said = event | {"batched": True, "request": [FILE], "simple_format": True}
    headers = [(b"host", b"localhost"), (b"content-length", b"9")]
    scope = {"type": "http", "method": "POST", "path": JOIN, "headers": headers}
    door = guard.Guard(app, names=["localhost"], limit=1)
    asyncio.run(door(scope, receive, send))
    assert (received, sent) == ([event], [])


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"data": "abc"}', b'{"data": {}}', b"[" * 50_000, b"\xff"],
)
def test_what_is_no_event_is_refused(visitor, body):
    kind = "application/json"
    status, _, said = visitor.get(JOIN, "POST", body, Content_Type=kind)
    assert (status, json.loads(said)) == (
        400,
        {"detail": "this is no event of the page"},
    )


@pytest.mark.parametrize(
    "number", [-1, 20, 1.5, "1", "/etc/passwd", None, True, 10**30]
)
def test_only_a_crop_of_the_index_has_more_like_it(visitor, number):
    html = visitor.like(number)
    if number is True:  # as good as 1
        assert 'data-kind="like"' in html
    else:
        assert "There is no such crop." in html


@pytest.mark.parametrize(
    ("k", "count"),
    [(7.0, 7), (-5, 1), (0, 1), (51, 50), (1e30, 50)]
    + [(k, 10) for k in ("all", None, float("nan"), float("inf"))],
)
def test_no_more_answers_than_the_page_offers(k, count):
    assert demo_answers.count(k) == count


def test_a_sentence_has_an_end(visitor, served):
    page = demo_answers.Page(served, limit=1)
    assert "write at most 1000" in page.text("a " * 1000, 10, ())[0]
    assert 'data-kind="text"' in page.text("a " * 500, 10, ())[0]


# --- who asks -------------------------------------------------------------------------


def test_the_page_goes_by_its_own_names_only(visitor):
    port = visitor.url.rsplit(":", 1)[1]
    for host in (
        "localhost",
        "127.0.0.1",
        "[::1]",
        "192.168.1.7",
        socket.gethostname(),
    ):
        assert visitor.get("/", Host=f"{host}:{port}")[0] == 200, host
    for host in (
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil",
        "",
        "[::1",
    ):
        assert visitor.get("/", Host=f"{host}:{port}")[0] == 403, host
    assert visitor.get("/", Host="evil.example@localhost")[0] == 403


def test_another_sites_page_can_ask_nothing_and_read_nothing(visitor):
    port = visitor.url.rsplit(":", 1)[1]
    others = [
        "https://evil.example",
        "null",
        "http://localhost:1",
        f"http://a:{port}",
        "",
        "http://[::1",
    ]
    for origin in others:
        for method, path in (("GET", "/"), ("POST", JOIN), ("GET", "/theme.css")):
            status, headers, _ = visitor.get(path, method, b"{}", Origin=origin)
            assert status == 403, (origin, path)
            assert "Access-Control-Allow-Origin" not in headers
        asks = dict(Origin=origin, Access_Control_Request_Method="POST")
        status, headers, _ = visitor.get(JOIN, "OPTIONS", **asks)
        assert status == 403
        assert "Access-Control-Allow-Origin" not in headers
    status, headers, _ = visitor.get("/", Origin=visitor.url)
    assert status == 200
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("asked", "status"),
    [("", 200), ("?", 200), ("?__theme=dark", 200), ("?__theme=light", 200)]
    + [
        (f"?{x}", 404)
        for x in ("deep_link=a", "view=api", "__theme=a", "__theme=dark&a")
    ],
)
def test_the_pages_address_says_how_it_looks_and_nothing_else(visitor, asked, status):
    assert visitor.get(f"/{asked}")[0] == status


def test_browsers_are_told_who_asks_and_that_is_heeded(visitor):
    link = dict(Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert visitor.get("/", **link)[0] == 200  # a link that someone followed
    assert visitor.get("/gradio_api/queue/data?session_hash=a", **link)[0] == 403
    for site in ("cross-site", "same-site"):
        for mode in ("no-cors", "cors"):
            asks = dict(Sec_Fetch_Site=site, Sec_Fetch_Mode=mode)
            assert visitor.get("/", **asks)[0] == 403
    own = dict(Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors")
    assert visitor.get("/theme.css", **own)[0] == 200


def test_every_answer_forbids_frames_and_what_comes_from_elsewhere(visitor):
    for path in ("/", "/theme.css", "/nothing"):
        headers = visitor.get(path)[1]
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_it_listens_to_this_machine_unless_told_otherwise(served, url, monkeypatch):
    assert url.startswith("http://127.0.0.1:")
    asked = []
    monkeypatch.setattr(
        demo, "running", lambda *_, **fields: asked.append(fields) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        demo.serve(served)
    assert asked[0]["host"] == "127.0.0.1"
    with demo._listening("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "warns"), [("127.0.0.1", 0), ("localhost", 0), ("0.0.0.0", 1), ("", 1)]
)
def test_who_opens_it_to_others_is_warned(served, monkeypatch, capsys, host, warns):
    told = threading.Event()
    told.set()  # at once
    monkeypatch.setattr(demo, "_told", lambda: contextlib.nullcontext(told))
    demo.serve(served, host=host, port=0)
    said = capsys.readouterr().out
    assert ("there is no password" in said) == bool(warns)
    assert re.search(r"the page is at http://(127\.0\.0\.1|localhost):\d+ ", said)


def test_without_gradio_the_remedy_is_said(monkeypatch):
    demo._gradio.cache_clear()
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(UserError, match=r"pip install '\.\[demo\]'"):
        demo._gradio()
    monkeypatch.undo()
    demo._gradio.cache_clear()


# --- several at once ------------------------------------------------------------------


def test_visitors_at_once_get_their_own_answers_one_question_at_a_time(served):
    class Counted:
        index, at_once, most = served.index, 0, 0
        lock = threading.Lock()

        def __getattr__(self, name):
            def ask(*args):
                with self.lock:
                    self.at_once += 1
                    self.most = max(self.most, self.at_once)
                try:
                    return getattr(served, name)(*args)
                finally:
                    with self.lock:
                        self.at_once -= 1

            return ask

    counted = Counted()
    sentences = [f"a man with {n} bags" for n in ("no", "red", "two", "old", "big")]
    with demo.running(counted) as url:
        visitors = [serving.Visitor(url) for _ in sentences]
        asks = [
            lambda v=v, s=s: v.text(s) for v, s in zip(visitors, sentences, strict=True)
        ]
        answers = serving.together(*asks)
        for sentence, html in zip(sentences, answers, strict=True):
            hits = served.by_text([sentence], 10)[0]
            assert serving.numbers(html) == [hit.number for hit in hits]
        assert counted.most == 1
        first, second = visitors[:2]
        assert f"more like {served.index[3].label}" in first.like(3)
        assert 'data-kind="empty"' in second.back()  # the other's way is not hers
        assert serving.numbers(first.back()) == serving.numbers(answers[0])
