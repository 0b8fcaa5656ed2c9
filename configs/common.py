"""What configs are made of: variants, and the fragments that they name."""

from ml_collections import ConfigDict

from unipt_jax.errors import UserError

AXES = {
    "tower": ("vit_b16", "deit_s16", "clip_b16"),
    "recipe": ("paper", "released", "siglip"),
    "set": ("luperson", "synthetic"),
}


def parse(variant: str, axes: dict[str, tuple[str, ...]] = AXES) -> dict[str, str]:
    """ "released,deit_s16" -> {"recipe": "released", "tower": "deit_s16"}.

    At most one name an axis. Raises UserError for a name that is not known.
    """
    chosen: dict[str, str] = {}
    known = ["quickstart", *(name for names in axes.values() for name in names)]
    for name in filter(None, variant.split(",")):
        axis = next((a for a, names in axes.items() if name in names), None)
        if axis is None:
            raise UserError(
                f"unknown variant '{name}'; the variants are {', '.join(known)}"
                + ("; quickstart stands alone" if name == "quickstart" else "")
            )
        if axis in chosen:
            raise UserError(
                f"variants '{chosen[axis]}' and '{name}' are both a {axis}; name one"
            )
        chosen[axis] = name
    return chosen


def vit(features: int, layers: int, heads: int, **more) -> ConfigDict:
    """An image tower; the paper's images are 384x128."""
    fields = dict(
        height=384,
        width=128,
        patch=(16, 16),
        features=features,
        layers=layers,
        heads=heads,
        hidden=4 * features,
        distillation=False,
        dropout=0.1,
        attention_dropout=0.0,
        drop_path=0.0,  # of the last block; it rises to that from the first
        norm_eps=1e-12,
        activation="gelu",
        pre_norm=False,
        patch_bias=True,
        remat="none",
        attention="auto",  # or "xla", "cudnn": auto takes the faster one here
    )
    return ConfigDict(fields | more)


def bert(features: int, layers: int, heads: int, **more) -> ConfigDict:
    """A text tower."""
    fields = dict(
        kind="bert",
        positions=512,
        features=features,
        layers=layers,
        heads=heads,
        hidden=4 * features,
        dropout=0.1,
        attention_dropout=0.1,
        norm_eps=1e-12,
        activation="gelu",
        remat="none",
        attention="auto",  # or "xla", "cudnn": auto takes the faster one here
    )
    return ConfigDict(fields | more)


def pgu(parts: int) -> ConfigDict:
    """LGUR's granularity unification with so many parts, 6 in the paper; 0: none."""
    return ConfigDict(
        dict(
            parts=parts,
            layers=2,
            heads=6,
            head_width=512,
            hidden=512,
            features=512,
            tokens="projected",  # or "tower", where both towers have one width
        )
    )


def interaction(layers: int) -> ConfigDict:
    """IRRA's encoder for cross-modal MLM, 4 layers there; 0: none."""
    return ConfigDict(dict(layers=layers, heads=8, activation="quick_gelu"))


def model(tower: str) -> ConfigDict:
    """The dual encoder; ViT and BERT meet in a space as wide as the image tower."""
    if tower == "clip_b16":
        return clip_b16()
    image = {
        "vit_b16": vit(768, 12, 12),
        "deit_s16": vit(384, 12, 6, distillation=True, norm_eps=1e-6),
    }[tower]
    return ConfigDict(
        dict(
            image=image,
            text=bert(768, 12, 12),
            embedding=image.features,
            pool="max",
            pool_padding=False,
            pool_special=True,
            projection_bias=True,
            temperature="none",
            temperature_init=0.07,
            bias="none",  # or "learned", for the sigmoid loss
            bias_init=-10.0,
            mlm_output="tied",
            pgu=pgu(0),  # fine-tuning adds it
            retrieval="global",
            interaction=interaction(0),
            identities=0,  # fine-tuning takes their number from the data
            dtype="bfloat16",
        )
    )


def clip_b16() -> ConfigDict:
    """CLIP's two towers, its pooling, its temperature, and no head for masked words."""
    clip = dict(norm_eps=1e-5, activation="quick_gelu", dropout=0.0)
    image = vit(768, 12, 12, pre_norm=True, patch_bias=False, **clip)
    text = bert(512, 12, 8, positions=77, attention_dropout=0.0, **clip)
    text.kind = "clip"
    return ConfigDict(
        dict(
            image=image,
            text=text,
            embedding=512,
            pool="token",
            pool_padding=False,
            pool_special=True,
            projection_bias=False,
            temperature="learned",
            temperature_init=0.01,
            bias="none",
            bias_init=-10.0,
            mlm_output="none",
            pgu=pgu(0),
            retrieval="global",
            interaction=interaction(0),
            identities=0,
            dtype="bfloat16",
        )
    )


def training() -> ConfigDict:
    """The fields that every training config has, as the paper sets them."""
    return ConfigDict(
        dict(
            seed=0,
            epochs=15,
            steps=0,  # 0: as many as `epochs` give
            batch_size=512,
            lr=1e-5,
            warmup=0.1,  # share of the steps
            decay="linear",  # or "cosine", "constant", "steps"
            drops=(),  # epochs after which decay "steps" multiplies by drop_factor
            drop_factor=0.1,
            optimiser=dict(
                betas=(0.9, 0.98),
                eps=1e-8,
                weight_decay=0.01,
                clip=0.0,
                groups=(("", 1.0),),  # (pattern of paths, factor on the rate)
                decoupled=True,  # weight decay as AdamW's; False: as Adam's
            ),
            pixels=dict(
                mean=(0.5, 0.5, 0.5),
                std=(0.5, 0.5, 0.5),
                flips=True,
                shift=0,  # pixels by which an image is moved, at most
                erasing=0.0,  # probability of random erasing
            ),
            data=dict(
                records="data/luperson",
                split="pretrain",
                captions="data/luperson/captions",
                sample="image",
                lengths=(32, 48, 64, 100),
                threads=8,
                buffer=4,
                cache=False,
            ),
            tokenizer="bert-base-uncased",
            init=init(),
            evaluate=dict(records="", val="", test="", batch_size=256),
            every=dict(report=50, evaluate=0, save=1000),
            keep=1,
            mesh=dict(data=0, fsdp=1),  # data=0: all devices that fsdp leaves
            # micro_batch: images that pass the towers at a time, 0: all. chunk: larger
            # batches compare images with texts in tiles of so many texts.
            memory=dict(micro_batch=0, accumulation="cached", chunk=1024),
            profile="",  # START:STOP, steps of this start of the program
            peak_tflops=0.0,  # of a device; 0: as its maker has it
        )
    )


def init() -> ConfigDict:
    """Where the weights start from: random, unless sources are named.

    A source is a folder, a file, or a Hugging Face hub id; `model` may be a run or an
    export too. Loading is strict: what may stay random is named in keep_init (patterns
    of our paths), what a file may hold in vain in ignore (patterns of its names).
    """
    return ConfigDict(
        dict(
            model="",  # both towers and their heads
            image="",
            text="",
            keep_init=(),
            ignore=(
                r"(^|\.)pooler\.",
                r"(^|\.)(classifier|cls_classifier|distillation_classifier)\.",
                r"^(head|head_dist|fc_norm)\.",
                r"^cls\.seq_relationship\.",
                # What the released code trains beside the towers: ViLT's heads, CAE.
                r"^(clip|token_type_embeddings|itm_score|mpp_score|rank_output)\b",
                r"^transformer\.(decoder|mask_token|fc_mask|fc_visual|norm_mask)",
                r"^transformer\.norm_visual",
            ),
            distillation="keep",  # or "drop": DeiT's second token
            resize="bicubic",  # or "bilinear_align_corners": position embeddings
        )
    )


# What a researcher starts from: weights of the towers, and the tokenizer with them.
STARTS = {
    "vit_b16": dict(
        image="google/vit-base-patch16-384", text="google-bert/bert-base-uncased"
    ),
    "deit_s16": dict(
        image="facebook/deit-small-distilled-patch16-224",
        text="google-bert/bert-base-uncased",
    ),
    "clip_b16": dict(model="openai/clip-vit-base-patch16"),
}


def start_from(config: ConfigDict, tower: str) -> None:
    """The weights, tokenizer and pixels that go with a tower."""
    config.init.update(STARTS[tower])
    config.tokenizer = config.init.model or config.init.text
    if tower == "clip_b16":
        config.pixels.mean = (0.48145466, 0.4578275, 0.40821073)
        config.pixels.std = (0.26862954, 0.26130258, 0.27577711)
        config.data.lengths = (32, 48, 77)


def synthetic(config: ConfigDict) -> None:
    """Reads the embedded persons (`python -m data_prep.build synthetic`)."""
    config.init.model = config.init.text = ""  # their vocabulary is another
    config.data.records = "data/synthetic"
    config.data.captions = "data/synthetic/captions"
    config.tokenizer = "data/synthetic/tokenizer"
    config.evaluate.val = "val"
    config.evaluate.test = "test"


def small(config: ConfigDict) -> None:
    """A pair of towers for two cores and a few minutes, on pictures of 96x32."""
    config.model.image = vit(
        96, 3, 4, height=96, width=32, patch=(16, 8), dropout=0.0, norm_eps=1e-6
    )
    config.model.text = bert(96, 2, 4, positions=64, dropout=0.0, attention_dropout=0.0)
    config.model.embedding = 128
    config.model.dtype = "float32"
    # Adam divides by the gradient's size: with 1e-8 and a high rate, the rounding noise
    # of vanishing gradients becomes whole updates, and no two layouts agree for long.
    config.optimiser.eps = 1e-6
    config.pixels.shift = 3
    config.data.lengths = (48,)  # one length, one compilation; longer texts are cut
    config.data.threads = 1
    config.data.cache = True
