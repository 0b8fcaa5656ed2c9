"""UniPT in JAX: text-to-image person re-identification.

`unipt_jax.load(DIR)` opens a trained model, `unipt_jax.open_index(DIR)` an index of
pictures to search; everything else is a job of `python -m unipt_jax.main`.
"""

from typing import Any


def load(folder: str, **options: Any) -> Any:
    """Opens a run directory; see `unipt_jax.encoder.load`."""
    from unipt_jax import encoder  # jax is imported when a model is, not before

    return encoder.load(folder, **options)


def open_index(folder: str, **options: Any) -> Any:
    """Opens an index of pictures; see `unipt_jax.search.searcher.open_searcher`."""
    from unipt_jax.search import searcher

    return searcher.open_searcher(folder, **options)
