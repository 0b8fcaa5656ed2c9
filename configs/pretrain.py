"""Pre-training: `configs/pretrain.py[:tower,recipe,set]`, or `:quickstart`.

Without a variant: the paper's recipe, ViT-B/16 and BERT-base, on LUPerson, starting from
the weights that the Hugging Face hub has of both.
"""

from ml_collections import ConfigDict

from configs import common
from unipt_jax.errors import UserError


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    if variant == "quickstart":
        return quickstart()
    chosen = common.parse(variant)
    config = common.training()
    config.job = "pretrain"
    config.recipe = chosen.get("recipe", "paper")
    tower = chosen.get("tower", "vit_b16")
    config.model = common.model(tower)
    config.loss = ConfigDict(dict(contrastive=1.0, mlm=1.0, sigmoid=0.0))
    # add_mask: give a tokenizer without a mask token, as CLIP's, one more token.
    config.mlm = ConfigDict(dict(rate=0.15, whole_words=False, add_mask=False))
    common.start_from(config, tower)
    if config.model.mlm_output == "none":
        config.loss.mlm = 0.0
    if config.recipe == "released":
        released(config)
    if config.recipe == "siglip":
        siglip(config)
    if chosen.get("set") == "synthetic":
        common.synthetic(config)
    return config.lock()


def released(config: ConfigDict) -> None:
    """What the released code does where the paper says nothing.

    Its local negatives, 64 a GPU, come from a batch that is not gathered; here they
    are those of the global batch.
    """
    config.init.resize = "bilinear_align_corners"
    if config.model.text.kind == "clip":
        return  # one token stands for a text: no padding, no words to guess
    config.model.pool_padding = True
    config.model.mlm_output = "untied"
    config.mlm.whole_words = True
    config.data.lengths = (100,)  # padding takes part in the maximum: one length


def siglip(config: ConfigDict) -> None:
    """SigLIP's loss for the contrastive one: each pair is a question by itself."""
    if config.model.text.kind == "clip":
        raise UserError(
            "siglip starts from a temperature of its own, clip_b16 brings CLIP's along; "
            "use siglip with vit_b16 or deit_s16"
        )
    config.loss.update(dict(contrastive=0.0, sigmoid=1.0))
    config.model.temperature, config.model.temperature_init = "learned", 0.1
    config.model.bias = "learned"
    config.init.keep_init = (*config.init.keep_init, "^(logit_bias|log_scale)$")


def quickstart() -> ConfigDict:
    """A pair small enough for two cores and a few minutes, on the embedded persons."""
    config = get_config("synthetic").unlock()
    config.recipe = "quickstart"
    config.init.image = ""
    common.small(config)
    config.model.temperature = "learned"
    config.batch_size = 128
    config.steps = 1200
    config.lr = 2.5e-3
    config.decay = "cosine"
    config.optimiser.clip = 1.0
    config.every.evaluate = 400
    config.every.save = 400
    return config.lock()
