"""Pictures in folders: which files there are, and reading them from a store that may fail."""

import collections
import concurrent.futures
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from unipt_jax.data.images import SUFFIXES
from unipt_jax.errors import UserError, of_the_file

AHEAD = 3  # groups that are read while one is used
TRIES, PAUSE = 4, 2.0  # of reading from a store that fails, and seconds between
_T = TypeVar("_T")


def pictures(
    root: str | os.PathLike,
    *,
    enter: Callable[[os.DirEntry], bool],
    unlisted: Callable[[OSError], None],
) -> Iterator[tuple[str, os.DirEntry]]:
    """Path below `root` and entry of all that is named as a picture and is no folder.

    enter: whether to look into a folder, or a link to one; asked for those of one folder
    in the order of their names. unlisted: told of a folder that cannot be looked into.
    """
    waiting = [""]
    while waiting:
        below = waiting.pop()
        try:
            with os.scandir(os.path.join(root, below)) as listing:
                entries = list(listing)
        except OSError as error:
            unlisted(error)
            continue
        folders, prefix = [], f"{below}/" if below else ""
        for entry in entries:
            if is_folder(entry):
                folders.append(entry)
            elif entry.name.lower().endswith(SUFFIXES):
                yield prefix + entry.name, entry
        folders.sort(key=lambda entry: entry.name)
        entered = [prefix + entry.name for entry in folders if enter(entry)]
        waiting += reversed(entered)


def is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder or leads to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link that leads round in a circle
        return False


def patiently(read: Callable[[], _T], store: str) -> _T:
    """What `read` gives, tried again where not the file but its store fails.

    Raises OSError for a file that cannot be read, UserError for a store that cannot.
    """
    for left in reversed(range(TRIES)):
        try:
            return read()
        except OSError as error:
            if of_the_file(error):
                raise
            if not left:
                raise UserError(
                    f"{store} cannot be read any more ({error}); run the same command "
                    "again when it can"
                ) from error
            time.sleep(PAUSE)
    raise AssertionError("not reached")


def read_ahead(
    groups: Iterable[Iterable[Callable[[], _T]]], threads: int
) -> Iterator[list[_T]]:
    """What the reads of each group give, in their order; threads read the next groups.

    What a read raises is raised in its group's turn. Close it where it is left early:
    then what is not begun is not read.
    """
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    waiting: collections.deque = collections.deque()

    def collect() -> list[_T]:
        return [future.result() for future in waiting.popleft()]

    try:
        for group in groups:
            waiting.append([pool.submit(read) for read in group])
            if len(waiting) > AHEAD:
                yield collect()
        while waiting:
            yield collect()
    finally:
        pool.shutdown(cancel_futures=True)
