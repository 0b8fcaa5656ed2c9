"""Files that appear whole, or not at all."""

import os
import socket

from etils import epath


def partial_of(file: epath.Path) -> epath.Path:
    """Where this process writes a file before it has its name."""
    return file.with_name(f"{file.name}.{socket.gethostname()}-{os.getpid()}.partial")


def settle(partial: epath.Path, file: epath.Path) -> None:
    """Gives a written file its name once its bytes are on the disk, not before: after a
    power cut a file that has its name is whole."""
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    partial.replace(file)
