"""The page to search on: a `Searcher` in, a local web server that answers people.

Needs the extra `demo`. Nothing is loaded from elsewhere, no file is served by its path,
and an uploaded picture is in memory alone; see `guard`.
"""

import atexit
import contextlib
import functools
import ipaddress
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from unipt_jax.errors import UserError
from unipt_jax.search import demo_page
from unipt_jax.search.demo_answers import LONGEST, MOST, Page, Shown, Trail
from unipt_jax.search.guard import Guard
from unipt_jax.search.searcher import Searcher

WAITING = 32  # questions in the queue
# At once; each may be sending a picture, and each visitor's browser keeps a few of them.
CONNECTIONS = 128
# Sessions whose answers are kept so that they can go back, and for how many seconds.
SESSIONS, KEPT = 200, 3600
EXAMPLES = (
    "a woman in a red coat with a black backpack",
    "a man in a blue shirt and black trousers",
    "a person with white shoes carrying a bag",
)


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
    built.state_session_capacity = SESSIONS
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
    searcher: Searcher,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    upload_mb: float = 8,
    ended: threading.Event | None = None,
) -> Iterator[str]:
    """Serves the page from a thread; gives its address.

    port: 0 takes a free one. upload_mb: million bytes of an uploaded picture, at most.
    ended: what is set where the server ends by itself.
    Raises UserError where gradio is not installed, it cannot listen there, or for an odd
    `upload_mb`; RuntimeError where the server does not start, or has ended by itself.
    """
    check_limit(upload_mb)
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
            limit_concurrency=CONNECTIONS,
        )
        server = uvicorn.Server(config)
        thread = _Thread(server, listening, ended or threading.Event())
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            thread.check(app.failed)
            yield f"http://{_address(host)}:{port}"
            thread.check()
        finally:
            server.should_exit = True
            thread.join(timeout=5)


class _Thread(threading.Thread):
    """A server's own. ended: is set with its end; over: whether that has come; failed:
    what it came of, if known."""

    def __init__(self, server: Any, listening: socket.socket, ended: threading.Event):
        super().__init__(daemon=True)
        self.server, self.listening, self.ended = server, listening, ended
        self.over, self.failed = False, None

    def run(self) -> None:
        """Serves until the server is told to exit."""
        try:
            self.server.run(sockets=[self.listening])
        except BaseException as error:  # noqa: BLE001  raised where it is waited for
            self.failed = error
        self.over = True
        self.ended.set()

    def check(self, reason: Exception | None = None) -> None:
        """Raises RuntimeError where the server has ended. reason: if more is known."""
        if self.over:
            raise RuntimeError(
                f"the page's server has ended by itself ({reason or self.failed!r})"
            ) from (reason or self.failed)


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


def check_limit(upload_mb: float) -> None:
    """Raises UserError for what is no size of a picture in million bytes."""
    if not 0 < upload_mb < math.inf:
        raise UserError(
            f"demo.upload_mb is {upload_mb}; give how many MB a picture may have at most, "
            "such as 8"
        )


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
    Raises as `running` does.
    """
    fields = dict(host=host, port=port, upload_mb=upload_mb)
    with _told() as told, running(searcher, **fields, ended=told) as url:
        if not is_loopback(host):
            print(
                f"warning: whoever can reach {host or 'this machine'} can search these "
                "pictures and see them; there is no password",
                flush=True,
            )
        print(f"the page is at {url} (Ctrl-C ends it)", flush=True)
        told.wait()
    print("\nthe page is closed", flush=True)
