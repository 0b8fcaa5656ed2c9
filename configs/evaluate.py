"""Evaluation: `configs/evaluate.py`, or `:quickstart`, with --config.model=RUN."""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    config = ConfigDict(
        dict(
            job="evaluate",
            model="",  # a run directory, an export, or CLIP weights (also a hub id)
            checkpoint="best",  # of a run; or "last", or a step
            # Of CLIP weights: (height, width) to work at, (0, 0) for CLIP's own; and
            # how pictures come to it, "squeeze", "pad", or "crop" as CLIP itself does.
            size=(0, 0),
            fit="squeeze",
            seed=0,
            batch_size=256,
            examples=8,  # queries shown in report.html
            data=dict(records="", split="test", threads=8),
            mesh=dict(data=0, fsdp=1),
        )
    )
    if variant == "quickstart":
        config.data.records = "data/synthetic"
        config.data.threads = 2
    elif common.parse(variant, {"set": ("synthetic",)}).get("set"):
        config.data.records = "data/synthetic"
    return config.lock()
