"""What the process asks of its host: memory, and a place for compiled programs."""

import ctypes
import glob
import os
import pathlib

import jax

# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel*", "/dev/vfio/[0-9]*")
_CACHE_BYTES = 4 * 2**30


def keep_compiled() -> None:
    """Keeps compiled programs on disk: the next start of the same run compiles nothing.

    In JAX_COMPILATION_CACHE_DIR where that is set, else in unipt_jax/compiled of the
    user's cache, if that can be written; the oldest go when there are 4 GiB. Call it
    when all processes have met. Several processes on CPUs do without: one that finds a
    program which another compiles does its collectives in another order, and both wait
    for ever.
    """
    if jax.process_count() > 1 and jax.default_backend() == "cpu":
        jax.config.update("jax_enable_compilation_cache", False)
        return
    if jax.config.jax_compilation_cache_dir:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home) / "unipt_jax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that is read-only, or none
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


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
