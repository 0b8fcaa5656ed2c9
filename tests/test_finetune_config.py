"""What configs/finetune.py's variants say: the published numbers, on the real paths."""

import functools
import itertools

import jax
import numpy as np
import pytest

from configs import finetune
from unipt_jax import loop, tree
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

SETS, TOWERS = finetune.AXES["set"], finetune.AXES["tower"]
NEW = {"classifier", "part_classifiers", "image_projection", "text_projection"}


@functools.cache
def shapes(variant, identities=5):
    """The parameters that a variant trains, as shapes, with towers of one layer."""
    model = finetune.get_config(variant).unlock().model
    model.image.layers = model.text.layers = 1
    model.identities = identities
    module = unipt.build(model, vocabulary=90, pad=0, cls=1, sep=2)
    return jax.eval_shape(lambda: unipt.initialise(module, jax.random.key(0)))


def rates(variant) -> dict[str, float]:
    """Path -> the learning rate at its height."""
    config = finetune.get_config(variant)
    factors = tree.assign(shapes(variant), config.optimiser.groups)
    return {path: config.lr * x for path, x in tree.flatten(factors).items()}


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("recipe", ["", "paper", "lgur", "sdm"])
def test_every_variant_builds_and_its_groups_fit_its_parameters(recipe, tower):
    starts = ["", "imagenet"] if tower != "clip_b16" else [""]
    for name, start in itertools.product(SETS[:3], starts):
        variant = ",".join(filter(None, [name, recipe, tower, start]))
        config = finetune.get_config(variant)
        assert config.is_locked and config.job == "finetune"
        assert config.recipe == (recipe or "paper")
        assert config.data.records == f"data/{name}"
    for start in starts:
        assert len(set(rates(f"{SETS[0]},{recipe},{tower},{start}").values())) == 3


@pytest.mark.parametrize("recipe", ["", "paper", "lgur", "sdm"])
def test_every_synthetic_variant_builds_and_its_groups_fit_its_parameters(recipe):
    config = finetune.get_config(f"synthetic,{recipe}")
    assert config.is_locked and config.data.records == "data/synthetic"
    assert all(drop < config.epochs for drop in config.drops)
    groups = {factor for _, factor in config.optimiser.groups}
    found = set(rates(f"synthetic,{recipe}").values())
    assert found == {config.lr * factor for factor in groups}


def test_the_sets_differ_in_how_val_is_had_alone():
    configs = {name: finetune.get_config(name).to_dict() for name in SETS[:3]}
    vals = {name: c["evaluate"].pop("val") for name, c in configs.items()}
    assert vals == {"cuhk_pedes": "val", "icfg_pedes": "hold_out", "rstp_reid": "val"}
    assert {c["data"].pop("records") for c in configs.values()} == {
        f"data/{name}" for name in configs
    }
    first, *others = configs.values()
    assert all(config == first for config in others)
    assert first["evaluate"]["hold_out"] == 0.05
    assert first["evaluate"]["test"] == "test"


@pytest.mark.parametrize(
    ("variant", "said"),
    [
        ("", "no set to fine-tune on: name one"),
        ("paper,vit_b16", "no set to fine-tune on: name one"),
        ("cuhk-pedes", "unknown variant 'cuhk-pedes'; the variants are"),
        ("cuhk_pedes,irra", "unknown variant 'irra'"),
        ("cuhk_pedes,luperson", "unknown variant 'luperson'"),
        ("cuhk_pedes,quickstart", "quickstart stands alone"),
        ("cuhk_pedes,rstp_reid", "'cuhk_pedes' and 'rstp_reid' are both a set"),
        ("cuhk_pedes,paper,sdm", "'paper' and 'sdm' are both a recipe"),
        ("cuhk_pedes,vit_b16,clip_b16", "'vit_b16' and 'clip_b16' are both a tower"),
        ("cuhk_pedes,clip_b16,imagenet", "clip_b16 starts from CLIP"),
        ("synthetic,vit_b16", "synthetic has small towers of its own"),
        ("synthetic,imagenet", "leave 'imagenet' out"),
    ],
)
def test_variants_that_say_nothing_are_refused_in_one_sentence(variant, said):
    with pytest.raises(UserError) as caught:
        finetune.get_config(variant)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("recipe", ["paper", "lgur"])
def test_the_paper_s_losses_batch_and_pgu(recipe):
    config = finetune.get_config(f"cuhk_pedes,{recipe}")
    on = {name: weight for name, weight in config.loss.items() if weight}
    assert on == {"identity": 1.0, "ranking": 1.0, "pgu": 1.0}
    assert config.ranking.margin == {"paper": 0.2, "lgur": 0.3}[recipe]
    assert config.ranking.reduction == "sum"
    assert config.batch_size == 64 and config.data.sample == "pair"
    assert (config.model.image.height, config.model.image.width) == (384, 128)
    pgu = {k: v for k, v in config.model.pgu.items() if k != "tokens"}
    assert pgu == dict(
        parts=6, layers=2, heads=6, head_width=512, hidden=512, features=512
    )
    kernel = shapes(f"cuhk_pedes,{recipe}")["part_classifiers"]["kernel"]
    assert kernel.shape == (6, 512, 5) and config.model.retrieval == "pgu"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("recipe", ["paper", "lgur"])
def test_the_paper_s_rate_of_each_parameter(recipe, tower):
    found = rates(f"rstp_reid,{recipe},{tower}")
    parts = {"image": 1e-4, "text": 1e-5, "pgu": 1e-4, "log_scale": 1e-3}
    for path, rate in found.items():
        part = path.split("/")[0]
        assert rate == pytest.approx(1e-3 if part in NEW else parts[part]), path
    trained = {path.split("/")[0] for path in found}
    assert trained - {"log_scale"} == NEW | {"image", "text", "pgu"}


@pytest.mark.parametrize("recipe", ["paper", "lgur"])
def test_the_paper_s_rate_falls_tenfold_after_20_40_and_50_of_60_epochs(recipe):
    config = finetune.get_config(f"cuhk_pedes,{recipe}")
    schedule = loop.make_optimiser(config, 6000).schedule
    steps = np.array([0, 1999, 2000, 3999, 4000, 4999, 5000, 5999])
    wanted = [1e-4, 1e-4, 1e-5, 1e-5, 1e-6, 1e-6, 1e-7, 1e-7]
    np.testing.assert_allclose(schedule(steps), wanted, rtol=1e-5)
    assert config.epochs == 60


@pytest.mark.parametrize("recipe", ["paper", "lgur"])
def test_the_paper_s_optimiser_is_plain_adam(recipe):
    optimiser = finetune.get_config(f"cuhk_pedes,{recipe}").optimiser
    assert (tuple(optimiser.betas), optimiser.eps) == ((0.9, 0.999), 1e-8)
    assert optimiser.weight_decay == optimiser.clip == 0.0


def test_lgur_s_pixels_are_shifted_in_imagenet_s_statistics_and_the_paper_s_are_not():
    paper = finetune.get_config("cuhk_pedes")
    lgur = finetune.get_config("cuhk_pedes,lgur")
    assert tuple(lgur.pixels.mean) == (0.485, 0.456, 0.406)
    assert tuple(lgur.pixels.std) == (0.229, 0.224, 0.225)
    assert tuple(paper.pixels.mean) == tuple(paper.pixels.std) == (0.5, 0.5, 0.5)
    drops = paper.model.image.drop_path, lgur.model.image.drop_path
    assert (paper.pixels.shift, lgur.pixels.shift, drops) == (0, 10, (0.0, 0.1))
    for config in (paper, lgur):
        assert config.pixels.flips and config.pixels.erasing == 0.0


def test_irra_s_losses_temperature_and_interaction():
    config = finetune.get_config("cuhk_pedes,sdm,clip_b16")
    on = {name: weight for name, weight in config.loss.items() if weight}
    assert on == {"identity": 0.5, "sdm": 1.0, "mlm": 1.0}
    assert config.model.temperature == "fixed"
    assert config.model.temperature_init == 0.02
    assert config.model.interaction.layers == 4 and config.model.interaction.heads == 8
    assert config.mlm.add_mask and config.mlm.rate == 0.15
    assert config.pixels.flips and config.pixels.erasing == 0.5
    assert config.init.model == "openai/clip-vit-base-patch16" and not config.tokenizer
    assert config.data.lengths == (32, 48, 77)


def test_irra_s_rate_warms_up_for_5_of_60_epochs_and_falls_as_a_cosine():
    config = finetune.get_config("cuhk_pedes,sdm,clip_b16")
    schedule = loop.make_optimiser(config, 6000).schedule
    found = schedule(np.array([0, 249, 499, 500, 3250, 5999]))
    wanted = [1e-5 / 500, 0.5e-5, 1e-5, 1e-5, 0.5e-5, 0]
    # the last step is not quite the end; float32 of a cosine near -1
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-11)


@pytest.mark.parametrize("rest", ["vit_b16", "deit_s16", "clip_b16", "imagenet"])
def test_irra_s_new_parts_learn_5_times_as_fast_and_biases_twice(rest):
    new = {"classifier", "interaction", "cross_mlm_head"}
    if rest == "imagenet":  # a run's projections, or CLIP's, are trained already
        new |= {"image_projection", "text_projection"}
    for path, rate in rates(f"cuhk_pedes,sdm,{rest}").items():
        plain = 2e-5 if path.endswith("bias") else 1e-5
        wanted = 5e-5 if path.split("/")[0] in new else plain
        assert rate == pytest.approx(wanted), path


def test_parts_that_a_pre_trained_pair_lacks_may_start_at_random_and_no_other():
    for variant in ("cuhk_pedes", "cuhk_pedes,sdm,clip_b16"):
        config = finetune.get_config(variant)
        paths = tree.flatten(shapes(variant, identities=0))
        [pattern] = config.init.keep_init
        assert pattern == "^(pgu|interaction|cross_mlm_head)/"
        assert any(path.startswith(("pgu/", "interaction/")) for path in paths)
        assert not config.init.scratch


@pytest.mark.parametrize("recipe", ["lgur", "sdm"])
def test_synthetic_has_the_quickstart_s_towers_and_the_recipe_s_losses(recipe):
    config = finetune.get_config(f"synthetic,{recipe}")
    real = finetune.get_config(f"cuhk_pedes,{recipe}")
    assert config.loss == real.loss and config.ranking == real.ranking
    assert (config.decay, config.warmup) == (real.decay, real.warmup)
    assert config.model.image.features == config.model.text.features == 96
    assert config.init.model == "runs/quickstart/pretrain" and config.steps == 0


def test_quickstart_is_the_synthetic_variant_in_a_fixed_number_of_steps():
    quick = finetune.get_config("quickstart").to_dict()
    whole = finetune.get_config("synthetic").to_dict()
    differ = {key for key in whole if whole[key] != quick[key]}
    assert differ == {"recipe", "steps"} and quick["steps"] > whole["steps"] == 0
