"""UniPT in JAX: text-to-image person re-identification.

`unipt_jax.load(DIR)` opens a trained model; everything else is a job of
`python -m unipt_jax.main`.
"""

from typing import Any


def load(folder: str, **options: Any) -> Any:
    """Opens a run directory; see `unipt_jax.encoder.load`."""
    from unipt_jax import encoder  # jax is imported when a model is, not before

    return encoder.load(folder, **options)
