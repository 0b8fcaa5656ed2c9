"""Export: `configs/export.py`, with --config.model=RUN and --workdir=TARGET."""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    """The locked config; there are no variants."""
    common.parse(variant, {})
    config = ConfigDict(
        dict(
            job="export",
            model="",  # a run directory, an export, or CLIP weights
            checkpoint="best",  # or "last", or a step
            layout="unipt",  # or "hf", "timm", "openai"
            heads=False,  # take the heads along that only training needs
            overwrite=False,  # replace an existing target
        )
    )
    return config.lock()
