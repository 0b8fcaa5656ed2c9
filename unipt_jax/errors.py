"""What a user's mistake raises: one sentence in, one sentence out, no traceback."""

import errno


class UserError(ValueError):
    """A foreseeable mistake: its text names the value, what was expected, what to do.

    `main` prints the text alone and exits with 1; from Python it is a `ValueError`.
    """


def explain_os_error(error: OSError) -> str | None:
    """The sentence for the operating system's refusals that a user can mend, or None."""
    where = error.filename or "the output"
    return {
        errno.ENOSPC: f"{where}: the disk is full; free some space or choose another "
        "folder, then run the same command again",
        errno.EDQUOT: f"{where}: the disk quota is used up; free some space or choose "
        "another folder, then run the same command again",
        errno.EROFS: f"{where}: the file system is read-only; choose a folder that can "
        "be written",
        errno.EACCES: f"{where}: permission denied; choose a folder that this user may "
        "read and write",
        errno.EISDIR: f"{where}: a folder of this name stands where a file is written; "
        "remove it or choose another folder",
        errno.ENOTDIR: f"{where}: a part of this path is a file, not a folder; choose "
        "another folder",
        errno.ENAMETOOLONG: f"{where}: the name is too long for the file system; choose "
        "a shorter one",
    }.get(error.errno)


# What the system says of one file that cannot be read; anything else (a network gone, too
# many open files) is no fault of the file, and must not make an image count as damaged.
_OF_THE_FILE = {None, errno.ENOENT, errno.EISDIR, errno.EACCES, errno.EPERM}
_OF_THE_FILE |= {errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.ENXIO}


def of_the_file(error: OSError) -> bool:
    """Whether one file cannot be read, rather than the store it lies in."""
    return error.errno in _OF_THE_FILE


class Stopped(Exception):
    """The run was asked to end (SIGTERM) and has saved; `main` exits with `CODE`."""

    CODE = 75  # EX_TEMPFAIL: a scheduler that sees it may start the same command again
