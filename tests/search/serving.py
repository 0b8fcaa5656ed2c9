"""The page in a server of its own, and what speaks to it without a browser."""

import contextlib
import dataclasses
import http.client
import itertools
import json
import re
import threading
from urllib.parse import urlsplit

import answering
import helpers
import searching

from unipt_jax import encoder as encoders
from unipt_jax.search import searcher

LIMIT = 300_000  # bytes of a picture
ODD = "o<b>'dd\" ${1+1} {{value}} &amp;.jpg"  # a name that is markup to a careless page
_number = itertools.count()


def open_searcher(clip, folder) -> searcher.Searcher:
    """A searcher of 20 crops in `folder`/crops, one of them of an odd name."""
    crops = searching.write_crops(folder / "crops")
    (crops / "000.jpg").rename(crops / ODD)
    encoder = encoders.load(str(clip), mesh=helpers.mesh_of(1))
    index = answering.write_index(folder / "index", encoder, clip, crops)
    return searcher.make(encoder, index)


@dataclasses.dataclass
class Visitor:
    """A session at the page, as a program makes it."""

    url: str
    session: str = ""

    def __post_init__(self):
        self.session = self.session or f"session{next(_number)}"

    def get(self, path, method="GET", body=None, **headers):
        """Status, headers and body of a path, which is sent as it stands."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        place = urlsplit(self.url)
        connection = http.client.HTTPConnection(place.hostname, place.port, timeout=30)
        with contextlib.closing(connection):
            connection.putrequest(
                method, path, skip_host="Host" in headers, skip_accept_encoding=True
            )
            if body is not None and "Transfer-Encoding" not in headers:
                headers.setdefault("Content-Length", str(len(body)))
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.send(body or b"")  # it may be refused before all is sent
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    @property
    def config(self):
        """What the page knows of itself."""
        page = self.get("/")[2].decode()
        return json.loads(re.search(r"window\.gradio_config = (\{.*?\});<", page)[1])

    def event(self, element, name):
        """The number of what happens at an event of an element."""
        config = self.config
        (target,) = (
            part["id"]
            for part in config["components"]
            if part["props"].get("elem_id") == element
        )
        (number,) = (
            happens["id"]
            for happens in config["dependencies"]
            if [target, name] in happens["targets"]
        )
        return number

    def join(self, data, number, **more):
        """Asks to be answered: status and body."""
        body = dict(data=data, fn_index=number, session_hash=self.session) | more
        path, kind = "/gradio_api/queue/join", "application/json"
        return self.get(path, "POST", json.dumps(body).encode(), Content_Type=kind)[::2]

    def ask(self, data, number, **more):
        """The HTML that an event is answered by."""
        status, body = self.join(data, number, **more)
        assert status == 200, body
        path = f"/gradio_api/queue/data?session_hash={self.session}"
        for line in self.get(path)[2].decode().splitlines():
            message = json.loads(line.removeprefix("data: ") or "{}")
            if message.get("msg") == "process_completed":
                assert message["success"], message
                return message["output"]["data"][0]
        raise AssertionError("never answered")

    def text(self, sentence, k=10):
        """The answer to a sentence."""
        return self.ask([sentence, k, None], self.event("search", "click"))

    def picture(self, encoded, k=10):
        """The answer to a picture, given in base64."""
        number, said = self.event("picker", "upload"), {"picture": encoded}
        return self.ask([k, None], number, event_data=said)

    def like(self, number, k=10):
        """The answer to a click on a crop."""
        event, said = self.event("answer", "select"), {"number": number}
        return self.ask([k, None], event, event_data=said)

    def back(self):
        """The answer before."""
        return self.ask([None], self.event("answer", "undo"))


def numbers(html):
    """The crops of an answer, best first."""
    return [int(n) for n in re.findall(r'data-number="(\d+)"', html)]


def together(*calls):
    """Calls at once; what each gave."""
    out = [None] * len(calls)

    def call(i):
        out[i] = calls[i]()

    threads = [threading.Thread(target=call, args=[i]) for i in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out
