"""Debian's chromium without a window: a page to click and type on, driven by its pipe.

The DevTools protocol over file descriptors 3 and 4: JSON, a NUL after each message.
"""

import base64
import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SECONDS = 30  # that anything may take
INPUT = "#sentence textarea, #sentence input"
# No other process's descriptor may be in the way of 3 and 4.
_START = """
import fcntl, os, sys
pipes = [fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3]]
os.dup2(pipes[0], 3)
os.dup2(pipes[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-background-networking", "--disable-sync"),
    *("--disable-component-update", "--disable-extensions", "--hide-scrollbars"),
    "--remote-debugging-pipe",
)


class Browser:
    """One page. asked: the addresses that it has asked for; said: its complaints."""

    def __init__(self, send: int, receive: int) -> None:
        self._send, self._receive = send, receive
        self._unread, self._number, self._session = b"", 0, {}
        self.asked: list[str] = []
        self.said: list[str] = []
        target = self.command("Target.createTarget", url="about:blank")["targetId"]
        attached = self.command("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.command(f"{domain}.enable")

    def command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends a command, gives its result. Raises RuntimeError where it fails."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        unsent = json.dumps(message | self._session).encode() + b"\0"
        while unsent:
            unsent = unsent[os.write(self._send, unsent) :]
        until = time.monotonic() + SECONDS
        while True:
            answer = self._message(until)
            if answer.get("id") == self._number:
                break
            self._heard(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def _message(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            left = max(0, until - time.monotonic())
            if not select.select([self._receive], [], [], left)[0]:
                raise TimeoutError("the browser does not answer")
            got = os.read(self._receive, 1 << 16)
            if not got:
                raise RuntimeError("the browser has ended")
            self._unread += got
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)

    def _heard(self, event: dict[str, Any]) -> None:
        method, said = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(said["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.said.append(json.dumps(said["exceptionDetails"])[:300])
        elif method == "Log.entryAdded" and said["entry"]["level"] == "error":
            self.said.append(f"{said['entry']['text']} {said['entry'].get('url', '')}")

    def open(self, url: str) -> None:
        """Goes to a page."""
        self.command("Page.navigate", url=url)

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        """The window, in CSS pixels, and what colours the reader likes."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression. Raises RuntimeError where it throws."""
        answer = self.command(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"])[:500])
        return answer["result"].get("value")

    def until(self, script: str) -> Any:
        """Waits for a JavaScript expression to be true; gives its value."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            if value := self.evaluate(script):
                return value
            time.sleep(0.05)
        raise TimeoutError(f"never true: {script}")

    def text(self, selector: str) -> list[str]:
        """What is read on the elements that match."""
        return self.evaluate(
            f"[...document.querySelectorAll({json.dumps(selector)})]"
            ".map(element => element.innerText.trim())"
        )

    def settled(self, selector: str) -> None:
        """Waits for an element that stays: a page that loads may draw itself twice."""
        name = json.dumps(selector)
        self.until(
            "(element => element && (element.seen = (element.seen || 0) + 1) > 5)"
            f"(document.querySelector({name}))"
        )

    def click(self, selector: str) -> None:
        """Presses the mouse's button on the first element that matches."""
        x, y = self.until(
            "(element => { if (!element) return null; "
            "element.scrollIntoView({block: 'center'}); "
            "const box = element.getBoundingClientRect(); "
            "return [box.x + box.width / 2, box.y + box.height / 2] })"
            f"(document.querySelector({json.dumps(selector)}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.command(
                "Input.dispatchMouseEvent",
                **dict(type=kind, x=x, y=y, button="left", clickCount=1),
            )

    def type(self, selector: str, text: str) -> None:
        """Types a text in the place of what an input has."""
        self.click(selector)
        self.evaluate("document.activeElement.select()")
        self.command("Input.insertText", text=text)

    def upload(self, selector: str, file: pathlib.Path) -> None:
        """Picks a file, as its dialogue would."""
        found = self.command(
            "Runtime.evaluate", expression=f"document.querySelector({selector!r})"
        )
        self.command(
            "DOM.setFileInputFiles",
            files=[str(file)],
            objectId=found["result"]["objectId"],
        )

    def screenshot(self, file: pathlib.Path) -> None:
        """Writes what the window shows, as a PNG."""
        shot = self.command("Page.captureScreenshot", format="png")
        file.write_bytes(base64.b64decode(shot["data"]))


@contextlib.contextmanager
def browser(folder: pathlib.Path) -> Iterator[Browser]:
    """Starts a browser that keeps its files in a folder, and ends it."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    process = subprocess.Popen(
        [
            *(sys.executable, "-IS", "-c", _START, str(theirs_in), str(theirs_out)),
            *(CHROMIUM, *_FLAGS, f"--user-data-dir={folder}", "about:blank"),
        ],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"HOME": str(folder)},
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        os.close(ours_out)  # which ends it
        os.close(ours_in)
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
