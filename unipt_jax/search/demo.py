"""The page to search on: a `Searcher` in, a local web server that answers people.

Needs the extra `demo`. Nothing is loaded from elsewhere, no file is served by its path,
and an uploaded picture is in memory alone; see `guard`.
"""

import atexit
import base64
import binascii
import contextlib
import dataclasses
import functools
import io
import ipaddress
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from unipt_jax.data import images
from unipt_jax.errors import UserError
from unipt_jax.search import crops, demo_page, scan
from unipt_jax.search.guard import Guard
from unipt_jax.search.searcher import Hit, Searcher
from unipt_jax.search.words import Words

MOST = 50  # answers to one question
LONGEST = 1000  # letters of a sentence
TRAIL = 20  # answers that one can go back to
WAITING = 32  # questions in the queue
KEPT = 3600  # seconds for which a session's answers are kept
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")  # of an uploaded picture
ERROR = "error"
EXAMPLES = (
    "a woman in a red coat with a black backpack",
    "a man in a blue shirt and black trousers",
    "a person with white shoes carrying a bag",
)
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class View:
    """An answer that one can come back to.

    kind: "text", "picture", "like" or `ERROR`. asked: the sentence, the path of the
    crop, or what is wrong.
    picture: what was searched with, a small JPEG, where it was a picture.
    """

    kind: str
    asked: str
    hits: Sequence[Hit] = ()
    words: Words | None = None
    notes: Sequence[str] = ()
    picture: bytes = b""

    @property
    def title(self) -> str:
        """What was asked, in short."""
        names = {"picture": "your picture", "like": f"more like {self.asked}"}
        return names.get(self.kind, f"\u201c{self.asked}\u201d")


Trail = tuple[View, ...]  # the answers of a session, the one shown last
Shown = tuple[str, Trail]


class Page:
    """What the page's events do: each gives the HTML to show and the session's trail."""

    def __init__(self, searcher: Searcher, *, limit: int) -> None:
        """limit: bytes of an uploaded picture."""
        self.searcher, self.limit = searcher, limit

    def text(self, sentence: str, k: float, trail: Trail) -> Shown:
        """The crops that a sentence describes."""
        return self._answered(lambda: self._text(str(sentence or ""), _count(k)), trail)

    def picture(self, encoded: str, k: float, trail: Trail) -> Shown:
        """The crops that look like an uploaded picture, given in base64."""
        return self._answered(lambda: self._picture(encoded, _count(k)), trail)

    def like(self, number: int, k: float, trail: Trail) -> Shown:
        """The crops that look like one of the index, by its stored embedding."""
        return self._answered(lambda: self._like(number, _count(k)), trail)

    def back(self, trail: Trail) -> Shown:
        """The answer before the one that is shown."""
        if len(trail) < 2:
            return demo_page.EMPTY, ()
        return self.shown(trail[:-1]), trail[:-1]

    def _answered(self, ask: Callable[[], View], trail: Trail) -> Shown:
        """Asks. What cannot be answered is a sentence, which nobody comes back to."""
        trail = tuple(view for view in trail if view.kind != ERROR)
        try:
            view = ask()
        except UserError as error:
            view = View(ERROR, str(error))
        except Exception:
            logger.exception("a question to the page could not be answered")
            view = View(ERROR, "This failed; the terminal that runs the page says how.")
        trail = (*trail, view)[-TRAIL:]
        return self.shown(trail), trail

    def _text(self, sentence: str, k: int) -> View:
        sentence = " ".join(sentence.split())
        if not sentence:
            raise UserError("Write a sentence that describes a person, then search.")
        if len(sentence) > LONGEST:
            raise UserError(
                f"The sentence has {len(sentence)} letters; write at most {LONGEST}."
            )
        (hits,) = self.searcher.by_text([sentence], k)
        words, notes = (
            self.searcher.words(sentence, hits),
            self.searcher.notes(sentence),
        )
        return View("text", sentence, hits, words, notes)

    def _picture(self, encoded: str, k: int) -> View:
        try:
            file = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise UserError("Pick a picture; this is none.") from error
        if len(file) > self.limit:
            raise UserError(
                f"The picture has {len(file) / 1e6:.1f} MB; pick one of at most "
                f"{self.limit / 1e6:g} MB."
            )
        picture = opened(file)
        notes = []
        if scan.looks_like_a_photograph(picture.height, picture.width):
            notes = ["The picture is not shaped like one person: cut the person out."]
        (hits,) = self.searcher.by_picture([picture], k)
        return View("picture", "", hits, notes=notes, picture=_small(picture))

    def _like(self, number: int, k: int) -> View:
        index = self.searcher.index
        if not isinstance(number, int) or not 0 <= number < len(index):
            raise UserError("There is no such crop.")
        hits = self.searcher.like(number, k)
        return View("like", self._path(number), hits, picture=self._crop(number)[0])

    def shown(self, trail: Trail) -> str:
        """The last answer of a trail as HTML."""
        view, back = trail[-1], trail[-2].title if len(trail) > 1 else ""
        if view.kind == ERROR:
            return demo_page.error(view.asked, back)
        said = {"text": "", "picture": "like your picture"}
        words = view.words
        return demo_page.answer(
            view.kind,
            said.get(view.kind, f"more like {view.asked}"),
            [self._card(hit) for hit in view.hits],
            words=demo_page.tinted(words.words, words.mean) if words else (),
            notes=view.notes,
            picture=view.picture,
            back=back,
        )

    def _card(self, hit: Hit) -> demo_page.Card:
        jpeg, changed = self._crop(hit.number)
        marks = ["photograph"] * hit.photograph + ["changed"] * changed
        score, path = f"{hit.score:.3f}", self._path(hit.number)
        return demo_page.Card(hit.number, hit.rank, score, path, marks, jpeg)

    def _crop(self, number: int) -> tuple[bytes, bool]:
        try:
            shown = crops.read(self.searcher.index, number)
        except OSError:  # whose text has the whole path
            return b"", False
        return shown.jpeg, shown.changed

    def _path(self, number: int) -> str:
        """A crop's path below its folder, with the folder's name if there are several."""
        index = self.searcher.index
        crop = index[number]
        several = len(index.folders) > 1
        name = os.path.basename(index.folders[crop.folder])
        return f"{name}/{crop.label}" if several else crop.label


def _count(k: float) -> int:
    """How many answers are wanted, within what the page offers."""
    try:
        return max(1, min(MOST, int(k)))
    except (TypeError, ValueError, OverflowError):
        return 10


def opened(encoded: bytes) -> Image.Image:
    """An uploaded file as an upright RGB picture.

    Raises UserError for what is damaged, no picture of a common kind
    (others would let PIL start programs), or larger than any person's.
    """
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            width, height = image.size
            if width * height > images.LARGEST_PIXELS:
                raise UserError(
                    f"The picture has {width} x {height} pixels; pick a smaller one."
                )
            return images.upright_rgb(image)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # whatever PIL says of a damaged file
        raise UserError(
            f"This cannot be read as a picture; pick a {', '.join(FORMATS[:-1])} or "
            f"{FORMATS[-1]} file."
        ) from error


def _small(picture: Image.Image) -> bytes:
    small, out = picture.copy(), io.BytesIO()
    small.thumbnail((512, 256))
    small.save(out, "JPEG", quality=85, comment=b"")
    return out.getvalue()


@functools.cache
def _gradio() -> Any:
    """Gradio, told to ask nobody and to keep its files in a folder of this process.

    Raises UserError where it is not installed.
    """
    # Its default is a folder that all users of a machine share.
    folder = tempfile.mkdtemp(prefix="unipt_jax_demo_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_RUN_HISTORY"] = "False"  # questions and answers, in the browser
    try:
        import gradio
    except ImportError as error:
        raise UserError(
            "the page needs gradio, which is not installed; install it with pip install "
            "'.[demo]', or ask with --config.query"
        ) from error
    return gradio


def blocks(page: Page, examples: Sequence[str] = EXAMPLES) -> Any:
    """The page's components, and what happens when."""
    gr = _gradio()
    index = page.searcher.index
    # The model's name alone: where it lies is nobody's business who is at the page.
    head = demo_page.head(len(index), os.path.basename(index.model.said))
    # One question at a time: several at once would take turns on the devices anyway.
    event = dict(concurrency_limit=1, concurrency_id="search", api_visibility="private")
    with gr.Blocks(title="unipt_jax search", analytics_enabled=False) as built:
        gr.HTML(head)
        trail = gr.State((), time_to_live=KEPT)
        with gr.Row(equal_height=True):
            sentence = gr.Textbox(
                label="Describe a person",
                placeholder=examples[0],
                max_length=LONGEST,
                scale=6,
                min_width=320,
                autofocus=True,
                elem_id="sentence",
            )
            count = gr.Slider(
                1, MOST, value=10, step=1, label="how many", scale=2, min_width=160
            )
        with gr.Row():
            button = gr.Button("Search", variant="primary", size="md", elem_id="search")
            picker = gr.HTML(
                demo_page.PICKER,
                js_on_load=demo_page.picks(page.limit),
                elem_id="picker",
            )
        with gr.Row(elem_classes="examples"):
            chips = [gr.Button(text, size="sm") for text in examples]
        answer = gr.HTML(
            demo_page.EMPTY,
            js_on_load=demo_page.CLICKS,
            elem_id="answer",
            min_height=200,
        )
        said = [answer, trail]
        asked = dict(fn=page.text, inputs=[sentence, count, trail], outputs=said)
        gr.on([button.click, sentence.submit], **asked, **event)
        for chip, text in zip(chips, examples, strict=True):
            chip.click(lambda text=text: text, None, sentence, **event).then(
                **asked, **event
            )

        def like(k: float, trail: Trail, event: gr.EventData) -> Shown:
            return page.like(_said(event, "number"), k, trail)

        def picture(k: float, trail: Trail, event: gr.EventData) -> Shown:
            return page.picture(_said(event, "picture"), k, trail)

        answer.select(like, [count, trail], said, **event)
        answer.undo(page.back, trail, said, **event)
        picker.upload(picture, [count, trail], said, **event)
    return built.queue(max_size=WAITING, api_open=False)


def _said(event: Any, name: str) -> Any:
    """What the page's script said with an event, None where it said nothing."""
    data = event._data
    return data.get(name) if isinstance(data, dict) else None


def application(page: Page, names: Sequence[str] = ()) -> Guard:
    """The page as an ASGI application. names: host names it goes by beside localhost."""
    gr = _gradio()
    import fastapi

    app = gr.mount_gradio_app(
        fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
        blocks(page),
        path="/",
        allowed_paths=[],
        footer_links=[],
        show_error=False,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        theme=_theme(gr),
        css=demo_page.STYLE,
    )
    return Guard(app, names=("localhost", *names), limit=page.limit)


def _theme(gr: Any) -> Any:
    """Fonts of the reader's system: Gradio's own would be asked of a font service."""
    return gr.themes.Default(
        primary_hue="blue",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )


@contextlib.contextmanager
def running(
    searcher: Searcher, *, host: str = "127.0.0.1", port: int = 0, upload_mb: float = 8
) -> Iterator[str]:
    """Serves the page from a thread; gives its address.

    port: 0 takes a free one. upload_mb: million bytes of an uploaded picture, at most.
    Raises UserError where gradio is not installed, or it cannot listen there.
    """
    page = Page(searcher, limit=int(upload_mb * 1e6))
    names = {host.lower(), socket.gethostname().lower()}
    app = application(page, sorted(names))
    import uvicorn

    with _listening(host, port) as listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_level="critical",
            access_log=False,
            timeout_graceful_shutdown=1,
            server_header=False,
            lifespan="on",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(
            target=server.run, kwargs=dict(sockets=[listening]), daemon=True
        )
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://{_address(host)}:{port}"
        finally:
            server.should_exit = True
            thread.join(timeout=5)


def _address(host: str) -> str:
    """How a browser on this machine is told of a host."""
    if host in ("", "0.0.0.0", "::"):
        return "127.0.0.1" if host != "::" else "[::1]"
    return f"[{host}]" if ":" in host else host


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises UserError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UserError(
            f"the page cannot listen at {host} port {port} ({error}); choose another "
            "with --config.demo.port, and for --config.demo.host an address of this "
            "machine"
        ) from error


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens at this host."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextlib.contextmanager
def _told() -> Iterator[threading.Event]:
    """What is set by Ctrl-C and SIGTERM, neither of which does anything else."""
    told = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: told.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def serve(
    searcher: Searcher,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    upload_mb: float = 8,
) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Says where it is, and warns where others than this machine's users can reach it.
    Raises UserError as `running` does.
    """
    if not upload_mb > 0:
        raise UserError(f"demo.upload_mb is {upload_mb}; give a number above 0")
    with (
        _told() as told,
        running(searcher, host=host, port=port, upload_mb=upload_mb) as url,
    ):
        if not is_loopback(host):
            print(
                f"warning: whoever can reach {host or 'this machine'} can search these "
                "pictures and see them; there is no password",
                flush=True,
            )
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        told.wait()
    print("\nthe page is closed", flush=True)
