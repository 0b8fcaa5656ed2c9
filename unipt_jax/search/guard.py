"""The door of the demo's page: requests in; those that the page itself makes get through.

Gradio serves files by their path, takes uploads to disk, fetches addresses and edits
code, each on a route of its own. The page needs none of that: pictures come and go
within its events, so a short list of routes is open and the rest is not there.
"""

import ipaddress
import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any
from urllib.parse import urlsplit

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

JOIN = "/gradio_api/queue/join"  # an event of the page, its pictures in it
_SESSION = r"[A-Za-z0-9]{1,64}"
_OPEN = {
    "HEAD": re.compile("/"),
    "GET": re.compile(
        r"/|/(assets|static)(/[\w-][\w.-]*)+|(/gradio_api)?/theme\.css|/favicon\.ico"
        r"|/manifest\.json|/gradio_api/(queue/data|startup-events)"
        rf"|/gradio_api/heartbeat/{_SESSION}",
        re.ASCII,
    ),
    "POST": re.compile(JOIN),
}
_ASKED = re.compile(rb"(__theme=(dark|light|system))?")  # of "/": how it is to look
_EVENT = ("data", "event_data", "fn_index", "trigger_id", "session_hash")
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.ASCII)
_SMALL = 1 << 16  # bytes of an event beside its picture
# All that a page may load is its own; nobody may frame it, or read it from elsewhere.
# Gradio's components are scripts made from texts, which is what eval stands for.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src 'self' data:; "
    "object-src 'none'; base-uri 'self'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Refused(Exception):
    """A request that is not answered: the status, and a sentence for who made it."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class Guard:
    """An ASGI application in front of Gradio's.

    names: host names that the page goes by, in small letters, beside any address in
    numbers. A page of another site cannot go by one of these, whatever name it has the
    browser look up. limit: bytes of a picture.
    """

    def __init__(self, app: Any, *, names: Collection[str], limit: int) -> None:
        self.app, self.names = app, frozenset(names)
        self.failed: Exception | None = None  # why the application did not begin
        self.longest = limit * 4 // 3 + _SMALL  # base64 writes 3 bytes as 4 letters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] == "lifespan":
            return await self._begin(scope, receive, send)
        if scope["type"] != "http":  # the page opens no web socket
            return await send({"type": "websocket.close", "code": 1008})
        try:
            headers = _headers(scope)
            asked = scope.get("query_string", b"")
            self.check(scope["method"], scope["path"], headers, asked)
            if scope["method"] == "POST":
                receive = _after(await self._event(headers, receive), receive)
        except Refused as refused:
            return await _refuse(refused, send)
        return await self.app(scope, receive, _with_headers(send))

    async def _begin(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            self.failed = error
            raise

    def check(
        self, method: str, path: str, headers: Mapping[str, str], asked: bytes = b""
    ) -> None:
        """Raises Refused for what the page would not ask for.

        path: decoded. headers: by small letters. asked: what stands behind the "?".
        """
        host = headers.get("host", "").lower()
        if not self._is_ours(host):
            raise Refused(
                403, f"the page is not called '{host[:80]}'; open it by its address"
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin is not None and _site(origin) != host:
            raise Refused(403, "another site's page may not ask for this")
        followed = headers.get("sec-fetch-mode") == "navigate" and path == "/"
        if site not in ("none", "same-origin") and not followed:
            raise Refused(403, "another site's page may not ask for this")
        if method not in _OPEN or not _OPEN[method].fullmatch(path):
            raise Refused(404, "there is no such page")
        if path == "/" and not _ASKED.fullmatch(asked):
            raise Refused(404, "the page takes no questions in its address")

    def _is_ours(self, host: str) -> bool:
        if not (said := _HOST.fullmatch(host)):
            return False
        name = said[1].strip("[]")
        try:
            return name in self.names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    async def _event(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """The body of an event, all of it. Raises Refused for a large or an odd one."""
        too_large = Refused(413, "the picture is too large for this page")
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > self.longest:
            raise too_large
        body, more = bytearray(), True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.longest:
                raise too_large
        return _plain(bytes(body))


def _site(origin: str) -> str:
    """Host and port of an origin; "" of what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _plain(body: bytes) -> bytes:
    """An event, written anew, with nothing but what the page says.

    Raises Refused where a value is no text or number: lists and objects are how Gradio
    is told of files and addresses, which it would then look for.
    """
    try:
        said = json.loads(body)
        event = {name: said[name] for name in _EVENT if name in said}
        data, more = event["data"], event.get("event_data") or {}
        nested = any(isinstance(v, list | dict) for v in [*data, *more.values()])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        nested = True
    if nested or not isinstance(data, list):
        raise Refused(400, "this is no event of the page")
    return json.dumps(event).encode()


def _headers(scope: Scope) -> dict[str, str]:
    """A request's headers. Raises Refused where two say who is asked for, or how much."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        name = name.decode("latin-1").lower()
        if name in headers and name in ("host", "origin", "content-length"):
            raise Refused(400, f"a request has one {name}")
        headers[name] = value.decode("latin-1")
    return headers


def _after(body: bytes, receive: Receive) -> Receive:
    """Hands out a body, then what is still to be received."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receives() -> dict[str, Any]:
        return messages.pop() if messages else await receive()

    return receives


async def _refuse(refused: Refused, send: Send) -> None:
    body = json.dumps({"detail": str(refused)}).encode()
    headers = _HEADERS | {
        "content-type": "application/json",
        "cache-control": "no-store",
    }
    headers["content-length"] = str(len(body))
    start = {"type": "http.response.start", "status": refused.status}
    await send(start | {"headers": _encoded(headers)})
    await send({"type": "http.response.body", "body": body})


def _with_headers(send: Send) -> Send:
    """Adds what a browser is told, and takes away what would let other sites read."""

    async def sends(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            kept = [
                (name, value)
                for name, value in message["headers"]
                if not name.lower().startswith(b"access-control-")
            ]
            message = message | {"headers": [*kept, *_encoded(_HEADERS)]}
        await send(message)

    return sends


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode()) for name, value in headers.items()]
