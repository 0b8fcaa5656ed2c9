"""How the process asks its host for memory."""

import ctypes
import glob
import os

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*")


def keep_memory() -> None:
    """Makes a process that computes on CPUs keep its memory from step to step.

    XLA takes a step's working memory, gigabytes at full size, from malloc and gives it
    back after each step; glibc then returns it to the kernel, which clears every page
    of it again for the next step: a sixth of a full-size step's time, a third of a
    small one's. Must be called before JAX starts its threads. Does nothing where there
    is an accelerator, or another C library.
    """
    forced = os.environ.get("JAX_PLATFORMS") == "cpu"
    if not forced and any(glob.glob(pattern) for pattern in _ACCELERATORS):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for name, value in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
            mallopt(ctypes.c_int(name), ctypes.c_int(value))
