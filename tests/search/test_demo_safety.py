"""What the page's server gives away to those who ask it otherwise than the page does."""

import base64
import contextlib
import importlib.util
import io
import json
import os
import pathlib
import re
import shutil
import socket
import sys
import threading
from urllib.parse import quote

import answering
import captioning
import pytest
import serving
from PIL import Image

if importlib.util.find_spec("gradio") is None:
    pytest.skip("gradio is not installed", allow_module_level=True)

from unipt_jax.errors import UserError
from unipt_jax.search import demo, guard

LIMIT = 300_000  # bytes of a picture
SECRET = b"this stands in a file and in no picture"
JOIN = "/gradio_api/queue/join"


@pytest.fixture(scope="module")
def searcher(clip, tmp_path_factory):
    return serving.open_searcher(clip, tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def folder(searcher):
    """Where the index and the crops lie."""
    return searcher.index.folder.parent


@pytest.fixture(scope="module")
def url(searcher):
    with demo.running(searcher, upload_mb=LIMIT / 1e6) as url:
        yield url


@pytest.fixture
def visitor(url):
    return serving.Visitor(url)


def encoded(data):
    return base64.b64encode(data).decode()


# --- routes ---------------------------------------------------------------------------


def all_routes(app):
    """Method and path of all that an application and those within it answer."""
    for route in app.routes:
        within = getattr(route, "original_router", getattr(route, "app", None))
        if hasattr(within, "routes"):
            yield from all_routes(within)
        else:
            yield from ((method, route.path) for method in route.methods)


def test_of_all_routes_that_gradio_has_the_few_of_the_page_are_open(searcher):
    application = demo.application(demo.Page(searcher, limit=1))
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
def test_no_file_can_be_fetched_by_its_path(visitor, searcher, way):
    files = ["/etc/passwd", *(searcher.index.folder / n for n in ("index.json",))]
    files += [searcher.index.file(1), *searcher.index.folder.glob("*.npy"), __file__]
    for file in map(pathlib.Path, files):
        status, _, body = visitor.get(way.format(quote(str(file))))
        assert file.read_bytes()[:60] not in body
        assert status in (400, 403, 404) or way.startswith("/?")


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
    # What else Gradio understands does not reach it.
    assert visitor.join(["a", 10, None], number, batched=True, data2=[value])[0] == 200


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


@pytest.mark.parametrize("k", [-5, 0, "all", None, 1e30, 51])
def test_no_more_answers_than_the_page_offers(visitor, k):
    status, body = visitor.join(["a man", k, None], visitor.event("search", "click"))
    assert status in (200, 422), body
    page = demo.Page(None, limit=1)
    assert 1 <= demo._count(k) <= demo.MOST
    assert page.limit == 1


def test_a_sentence_has_an_end(visitor, searcher):
    page = demo.Page(searcher, limit=1)
    assert "write at most 1000" in page.text("a " * 1000, 10, ())[0]
    assert 'data-kind="text"' in page.text("a " * 500, 10, ())[0]


# --- pictures -------------------------------------------------------------------------


def shown(html):
    """The pictures within an answer."""
    return [base64.b64decode(x) for x in re.findall(r"base64,([^\"]+)", html)]


def test_pictures_leave_as_small_jpegs_without_what_else_their_files_hold(
    visitor, searcher, monkeypatch
):
    file = searcher.index.file(3)
    with Image.open(file) as image:
        exif = Image.Exif()
        exif[0x9286] = exif[0x010E] = SECRET.decode()  # a comment, a description
        large = image.resize((400, 1000))
    before, state = file.read_bytes(), file.stat()
    large.save(file, "JPEG", exif=exif, comment=SECRET)
    file.write_bytes(file.read_bytes() + SECRET)
    try:
        html = visitor.text("a man", 20)
    finally:
        file.write_bytes(before)
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert len(shown(html)) == 20
    assert html.count(">changed</p>") == 1
    for jpeg in shown(html):
        assert SECRET not in jpeg
        with Image.open(io.BytesIO(jpeg)) as image:
            assert (image.format, dict(image.getexif())) == ("JPEG", {})
            assert image.height <= 256


@pytest.mark.parametrize("way", ["file", "folder", "gone", "pipe", "text"])
def test_what_took_the_place_of_a_crop_is_not_shown(visitor, searcher, tmp_path, way):
    file = pathlib.Path(searcher.index.folders[0], "anna", "004.jpg")
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in os.listdir(file.parent):
        if (file.parent / name).is_file():
            shutil.copy(file, outside / name)  # good pictures
    moved = file.parent if way == "folder" else file
    moved.rename(tmp_path / "kept")
    try:
        if way == "folder":
            moved.symlink_to(outside)
        elif way == "file":
            moved.symlink_to(outside / file.name)
        elif way == "pipe":
            os.mkfifo(moved)
        elif way == "text":
            moved.write_bytes(SECRET)
        html = visitor.text("a man", 20)
    finally:
        if moved.is_symlink() or moved.exists():
            moved.unlink()
        (tmp_path / "kept").rename(moved)
    missing = sum(searcher.index[i].path.startswith("anna/") for i in range(20))
    assert html.count("the file is gone") == (missing if way == "folder" else 1)
    assert SECRET.decode() not in html


def noise(height, width):
    return Image.effect_noise((width, height), 99).convert("RGB")


REFUSED = {
    "no picture": (b"hello", "cannot be read as a picture"),
    "nothing": (b"", "cannot be read as a picture"),
    "a bomb": (captioning.bomb(), "cannot be read as a picture"),
    "a smaller bomb": (captioning.bomb(9000), "9000 x 9000 pixels"),
    "cut off": (captioning.jpeg(1)[:300], "cannot be read as a picture"),
    "a program": (captioning.encode(noise(9, 9), "EPS"), "cannot be read as a picture"),
    "large": (bytes(LIMIT + 1), "0.3 MB; pick one of at most 0.3 MB"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_picture_of_a_person_is_refused_in_a_sentence(visitor, case):
    data, said = REFUSED[case]
    html = visitor.picture(encoded(data))
    assert 'data-kind="error"' in html
    assert said in html


@pytest.mark.parametrize("text", ["no base64!", "\u00e4", 7, None, True])
def test_what_is_no_base64_is_refused_in_a_sentence(visitor, text):
    assert "Pick a picture; this is none." in visitor.picture(text)


def test_more_than_a_picture_is_not_even_received(visitor):
    body = json.dumps({"data": ["a" * (LIMIT * 4 // 3 + 70_000)]}).encode()
    said = {"detail": "the picture is too large for this page"}
    answer = visitor.get(JOIN, "POST", body, Content_Type="application/json")
    assert (answer[0], json.loads(answer[2])) == (413, said)
    chunked = b"".join(
        b"%x\r\n%s\r\n" % (len(part), part)
        for part in (body[i : i + 65536] for i in range(0, len(body), 65536))
    )
    answer = visitor.get(JOIN, "POST", chunked, Transfer_Encoding="chunked")
    assert (answer[0], json.loads(answer[2])) == (413, said)


def test_an_uploaded_picture_never_lies_on_the_disk(visitor, searcher, folder):
    def files():
        there = pathlib.Path(os.environ["GRADIO_TEMP_DIR"]).rglob("*")
        return [file for file in there if file.is_file()]

    picture = captioning.encode(noise(300, 100), "JPEG")
    assert 'data-kind="picture"' in visitor.picture(encoded(picture))
    visitor.text("a man")
    assert files() == []


def test_a_whole_photograph_is_searched_with_a_note(visitor):
    html = visitor.picture(encoded(captioning.encode(noise(200, 300), "PNG")))
    assert "not shaped like one person" in html
    assert "not shaped like" not in visitor.picture(
        encoded(captioning.encode(noise(300, 100), "WEBP"))
    )


# --- paths ----------------------------------------------------------------------------


def test_only_the_paths_below_the_indexed_folder_are_told(visitor, folder):
    said = [visitor.get("/")[2].decode(), json.dumps(visitor.config)]
    said += [
        visitor.text("a man", 20),
        visitor.like(1),
        visitor.back(),
        visitor.text(""),
    ]
    picture = captioning.jpeg(1)
    said += [visitor.picture(encoded(picture)), visitor.picture(encoded(b"no"))]
    for text in said:
        for place in (str(folder), str(pathlib.Path.home()), os.getcwd(), sys.prefix):
            assert place not in text
    assert "anna/001.jpg" in said[2]


def test_an_error_of_ours_tells_nothing_to_the_page(searcher, caplog):
    class Broken:
        index = searcher.index

        def by_text(self, *_):
            raise RuntimeError(f"at {searcher.index.folder}")

    html, trail = demo.Page(Broken(), limit=1).text("a man", 10, ())
    assert "the terminal that runs the page says how" in html
    assert str(searcher.index.folder) not in html
    assert str(searcher.index.folder) in caplog.text
    assert len(trail) == 1


def test_crops_of_several_folders_are_told_apart(clip, searcher, tmp_path):
    crops = searcher.index.folders[0]
    index = answering.write_index(
        *(tmp_path, searcher.encoder, clip, pathlib.Path(crops)),
        folders=[crops, "/elsewhere/other"],
    )
    page = demo.Page(type(searcher)(searcher.encoder, index, searcher.gallery), limit=1)
    assert page._path(1).startswith("crops/")


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


def test_it_listens_to_this_machine_unless_told_otherwise(searcher, url, monkeypatch):
    assert url.startswith("http://127.0.0.1:")
    asked = []
    monkeypatch.setattr(
        demo, "running", lambda *_, **fields: asked.append(fields) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        demo.serve(searcher)
    assert asked[0]["host"] == "127.0.0.1"
    with demo._listening("127.0.0.1", 0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize(
    ("host", "warns"), [("127.0.0.1", 0), ("localhost", 0), ("0.0.0.0", 1), ("", 1)]
)
def test_who_opens_it_to_others_is_warned(searcher, monkeypatch, capsys, host, warns):
    told = threading.Event()
    told.set()  # at once
    monkeypatch.setattr(demo, "_told", lambda: contextlib.nullcontext(told))
    demo.serve(searcher, host=host, port=0)
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


def test_visitors_at_once_get_their_own_answers_one_question_at_a_time(searcher):
    class Counted:
        index, at_once, most = searcher.index, 0, 0
        lock = threading.Lock()

        def __getattr__(self, name):
            def ask(*args):
                with self.lock:
                    self.at_once += 1
                    self.most = max(self.most, self.at_once)
                try:
                    return getattr(searcher, name)(*args)
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
            hits = searcher.by_text([sentence], 10)[0]
            assert serving.numbers(html) == [hit.number for hit in hits]
        assert counted.most == 1
        first, second = visitors[:2]
        assert f"more like {searcher.index[3].label}" in first.like(3)
        assert 'data-kind="empty"' in second.back()  # the other's way is not hers
        assert serving.numbers(first.back()) == serving.numbers(answers[0])
