"""Ends a call before any one of the things that it does to the file system."""

import contextlib
import sys
import threading

_MOMENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
_state = {"left": None, "installed": False}


class Killed(BaseException):
    """Not caught by anything, as a kill is not."""


def _hook(event, arguments):
    if _state["left"] is None or threading.current_thread() is not _state["thread"]:
        return
    writes = event == "open" and set("wax") & set(str(arguments[1] or ""))
    if writes or event in _MOMENTS:
        if _state["left"] == 0:
            _state["left"] = None
            raise Killed
        _state["left"] -= 1


@contextlib.contextmanager
def before_moment(nth: int):
    """Raises Killed in the block before the nth file that it opens for writing,
    renames, makes or removes, in this thread."""
    if not _state["installed"]:
        sys.addaudithook(_hook)  # which nothing takes away again
    _state.update(left=nth, installed=True, thread=threading.current_thread())
    try:
        yield
    finally:
        _state["left"] = None
