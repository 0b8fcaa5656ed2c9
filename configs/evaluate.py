"""Evaluation: `configs/evaluate.py`, or `:quickstart`, with --config.model=RUN."""

from ml_collections import ConfigDict

from configs import common


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    config = ConfigDict(
        dict(
            job="evaluate",
            # A run directory, an export, or CLIP weights (also a hub id); several stand
            # between commas. A pattern (runs/paper-seed*) is one system with several
            # runs; NAME=... calls a system so.
            model="",
            checkpoint="best",  # of a run; or "last", or a step
            # Of CLIP weights: (height, width) to work at, (0, 0) for CLIP's own; and
            # how pictures come to it, "squeeze", "pad", or "crop" as CLIP itself does.
            size=(0, 0),
            fit="squeeze",
            seed=0,
            batch_size=256,
            examples=8,  # random, best and worst queries each that report.html shows
            bootstrap=1000,  # draws of the 95% intervals over persons; 0 for none
            without_match="left_out",  # what a query without right answer is; or "zero"
            rows="",  # "markdown", "latex", or both, with a comma: rows.md, rows.tex
            # By k-reciprocal neighbours among images, if k1 > 0, say 8.
            rerank=dict(k1=0, k2=3, weight=0.5),
            # Several sets stand between commas; FOLDER:SPLIT takes another split.
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
