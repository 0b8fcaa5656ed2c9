"""Fine-tuning: `configs/finetune.py:SET[,recipe][,tower][,imagenet]`, or `:quickstart`.

Sets: cuhk_pedes, icfg_pedes, rstp_reid, synthetic. Recipes: paper (the default; UniPT's
supervised stage, with LGUR's schedule), lgur (LGUR's augmentation, margin and statistics
too), sdm (IRRA's). Start from a run with --config.init.model=RUN; with `imagenet` from
ImageNet and BERT; `clip_b16` starts from CLIP unless told otherwise.
"""

from ml_collections import ConfigDict

from configs import common
from unipt_jax.errors import UserError

AXES = {
    "set": ("cuhk_pedes", "icfg_pedes", "rstp_reid", "synthetic"),
    "recipe": ("paper", "lgur", "sdm"),
    "tower": ("vit_b16", "deit_s16", "clip_b16"),
    "start": ("imagenet",),
}
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def get_config(variant: str = "") -> ConfigDict:
    """The locked config of a variant."""
    if variant == "quickstart":
        return quickstart()
    chosen = common.parse(variant, AXES)
    if "set" not in chosen:
        raise UserError(
            "no set to fine-tune on: name one, as configs/finetune.py:cuhk_pedes; the "
            f"sets are {', '.join(AXES['set'])}, and quickstart stands alone"
        )
    if chosen["set"] == "synthetic" and {"tower", "start"} & chosen.keys():
        raise UserError(
            "synthetic has small towers of its own, from the quickstart's run; leave "
            f"'{chosen.get('tower') or chosen['start']}' out"
        )
    tower = chosen.get("tower", "vit_b16")
    config = common.training()
    config.job = "finetune"
    config.recipe = chosen.get("recipe", "paper")
    config.model = common.model(tower)
    config.model.mlm_output = "none"
    config.tokenizer = ""  # that of the weights
    start_from(config, tower, chosen.get("start"))
    stage(config)
    {"paper": paper, "lgur": lgur, "sdm": sdm}[config.recipe](config)
    if config.recipe == "sdm" and chosen.get("start"):
        untrained_projections(config)
    read(config, chosen["set"])
    return config.lock()


def start_from(config: ConfigDict, tower: str, start: str | None) -> None:
    """The weights that a variant names, and what must fit them."""
    config.init.scratch = False  # True: random weights, on purpose
    # Parts that a pre-trained pair does not have yet; one that it has is loaded.
    config.init.keep_init = ("^(pgu|interaction|cross_mlm_head)/",)
    if tower == "clip_b16":
        if start:
            raise UserError("clip_b16 starts from CLIP; imagenet is for vit and deit")
        common.start_from(config, tower)
    elif start:
        config.init.update(common.STARTS[tower])
    config.tokenizer = ""


def stage(config: ConfigDict) -> None:
    """The fields that every fine-tuning has."""
    config.loss = ConfigDict(
        dict(identity=1.0, ranking=1.0, pgu=1.0, sdm=0.0, contrastive=0.0, mlm=0.0)
    )
    config.ranking = ConfigDict(dict(margin=0.2, reduction="sum"))
    config.mlm = ConfigDict(dict(rate=0.15, whole_words=False, add_mask=False))
    config.batch_size = 64
    config.epochs = 60
    config.data.sample = "pair"  # each caption once an epoch
    config.data.identities = 0  # P: batches of P identities x batch_size / P samples
    config.data.captions = ""  # the records' own
    config.data.split = "train"
    # val: the split on which the best checkpoint is chosen; "hold_out" takes that share
    # of train's identities out of training; "test" is said in every output.
    config.evaluate.update(dict(val="val", test="test"))
    config.evaluate.hold_out = 0.05
    config.every.update(dict(report=50, evaluate=1000, save=1000))


def paper(config: ConfigDict) -> None:
    """UniPT's: Lid + Lrank + gamma Lpgu (`loss.pgu`), Adam, three rates and a fourth."""
    config.lr = 1e-4
    config.warmup = 0.0
    config.decay, config.drops = "steps", (20, 40, 50)  # LGUR's
    config.optimiser.update(dict(betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0))
    new = "classifier|part_classifiers|image_projection|text_projection|interaction"
    config.optimiser.groups = (
        ("^text/", 0.1),
        (f"^({new}|cross_mlm_head|mlm_head|log_scale)", 10.0),
        ("", 1.0),  # the image tower and PGU
    )
    config.model.pgu = common.pgu(6)
    config.model.retrieval = "pgu"  # as LGUR ranks; the paper does not say


def lgur(config: ConfigDict) -> None:
    """The paper's with the rest of LGUR: margin, augmentation, statistics, drop path."""
    paper(config)
    config.ranking.margin = 0.3
    config.pixels.update(IMAGENET | dict(shift=10))
    config.model.image.drop_path = 0.1


def sdm(config: ConfigDict) -> None:
    """IRRA's: SDM + ID + cross-modal MLM.

    Its code averages the two identity losses, which a weight of a half does; gives
    biases twice the rate and no decay; and has Adam with this very large eps.
    """
    config.lr = 1e-5
    config.warmup = 5 / 60
    config.decay = "cosine"
    config.loss.update(dict(identity=0.5, ranking=0.0, pgu=0.0, sdm=1.0, mlm=1.0))
    config.model.temperature, config.model.temperature_init = "fixed", 0.02
    config.model.pgu = common.pgu(0)
    config.model.interaction = common.interaction(4)
    config.mlm.add_mask = config.model.text.kind == "clip"
    config.optimiser.update(
        dict(betas=(0.9, 0.999), eps=1e-3, weight_decay=4e-5, decoupled=False)
    )
    new = "classifier|interaction|cross_mlm_head|mlm_head"
    config.optimiser.groups = ((f"^({new})/", 5.0), ("bias$", 2.0), ("", 1.0))
    config.pixels.update(dict(shift=10, erasing=0.5))


def untrained_projections(config: ConfigDict) -> None:
    """CLIP's projections, or a run's, are trained; those over ImageNet's ViT are new."""
    (new, factor), *rest = config.optimiser.groups
    new = new.replace("classifier", "image_projection|text_projection|classifier")
    config.optimiser.groups = ((new, factor), *rest)


def read(config: ConfigDict, name: str) -> None:
    """The prepared set, where `python -m data_prep.build SET` puts it by example."""
    config.data.records = f"data/{name}"
    if name == "icfg_pedes":
        config.evaluate.val = "hold_out"  # it has no val
    if name == "synthetic":
        small(config)


def small(config: ConfigDict) -> None:
    """The quickstart's towers, on the embedded persons, and what suits their size.

    In place of the paper's recipe, chosen on val: SDM for the ranking loss of the
    summaries, from the pre-trained pair and from random weights; on 125 identities little
    of the identity loss; and to rank by the summaries. PGU is the paper's.
    """
    dropped = config.model.image.drop_path
    common.small(config)
    config.model.image.drop_path = dropped
    if config.model.pgu.parts:
        config.model.pgu.update(dict(heads=4, head_width=32, hidden=128, features=64))
    config.model.interaction.heads = 4
    config.tokenizer = "data/synthetic/tokenizer"
    config.init.model = "runs/quickstart/pretrain"
    config.lr = 1e-3
    config.optimiser.clip = 1.0
    config.drops = tuple(round(drop * 40 / config.epochs) for drop in config.drops)
    config.epochs = 40
    config.every.update(dict(report=25, evaluate=50, save=50))
    if config.recipe == "paper":
        config.loss.update(dict(identity=0.1, ranking=0.0, sdm=1.0))
        config.model.temperature, config.model.temperature_init = "fixed", 0.07
        config.ranking.reduction = "mean"
        config.model.retrieval = "global"
        config.optimiser.groups = (("", 1.0),)
        config.warmup, config.decay, config.drops = 0.1, "cosine", ()


def quickstart() -> ConfigDict:
    """A minute on the embedded persons, from `make quickstart`'s pre-trained pair."""
    config = get_config("synthetic").unlock()
    config.recipe = "quickstart"
    config.steps = 150
    return config.lock()
