"""Pseudo captions: `configs/caption.py[:clip_b16]`, or `:quickstart`.

Give the images with --config.data.records=DIR, or --config.data.images=FOLDER or LIST;
the captions appear in --workdir=DIR, which `configs/pretrain.py` takes as data.captions.
"""

from ml_collections import ConfigDict

from configs import common
from data_prep.synthetic.people import FREQUENCIES
from unipt_jax.captions.lexicon import PAPER


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    config = ConfigDict(
        dict(
            job="caption",
            model="openai/clip-vit-base-patch16",  # a CLIP, a run or an export
            # Of CLIP weights: height and width to work at, (0, 0) for CLIP's own, and
            # how pictures come to it. CLIP's own way is "crop", a square out of the
            # middle, which cuts hats, glasses and hair off a tall crop of a person.
            size=(0, 0),
            fit="squeeze",  # or "pad", "crop"
            dtype="auto",  # float32 on CPUs, bfloat16 elsewhere
            seed=0,
            phrases="",  # a file of your own phrases, templates, synonyms
            prompts="first",  # or "all": the mean of every prompt of a phrase
            threshold=0.9,  # a thing is told of above this probability
            # Over so many images (0: none) each threshold is set instead so that a
            # thing is found as often as `targets` says.
            calibrate=dict(images=0, targets=PAPER),
            captions_per_image=1,
            data=dict(images="", records="", split="pretrain", threads=8),
            batch_size=0,  # images a device at a time; 0: 16 on CPUs, 64 elsewhere
            shard=2048,  # images: what a killed job loses at most
            keep_records=True,  # of images that are no record set yet
            luperson_t=False,  # write LUPerson-T's JSON, too
            examples=24,  # images on the page
        )
    )
    if variant == "quickstart":
        config.model = "data_prep/synthetic/clip"
        config.data.records = "data/synthetic"
        config.data.threads = 2
        config.calibrate.images = 4096
        config.calibrate.targets = FREQUENCIES
        config.shard = 1024
        config.captions_per_image = 4  # few images, seen many times: other words each
        return config.lock()
    common.parse(variant, {"tower": ("clip_b16",)})
    return config.lock()
