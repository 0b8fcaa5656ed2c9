"""Weights by any of the known names give the same network, token for token."""

import foreign
import helpers
import numpy as np
import pytest
from foreign import arrays, assert_near, dual, load, same, tensor

from unipt_jax import sources
from unipt_jax.errors import UserError

torch, transformers = foreign.torch, foreign.transformers

# Features are of size 1 to 4 after a norm, from two to four blocks in float32: sums of
# up to some 200 products, in another order.
NEAR = 1e-5  # the order of float32 sums goes with the number of threads, too
SIZES = [(0, (32, 32)), (1, (48, 16)), (2, (16, 40))]


def on_disk(module, folder):
    """The tensors that transformers writes for a network, and the source."""
    module.save_pretrained(folder)
    return sources.open_source(folder)


# --- transformers: ViT and DeiT ------------------------------------------------------


def vit(seed, size, kind="ViT", network="Model"):
    """A ViT or DeiT of transformers, and our pair with a tower of its sizes."""
    ours = foreign.tower(seed)
    config = foreign.vit_config(
        getattr(transformers, f"{kind}Config"), ours, list(size)
    )
    theirs = getattr(transformers, f"{kind}{network}")(config)
    grid = dict(zip(("height", "width"), size, strict=True), patch=(8, 8))
    model = dual(image=ours | grid | dict(distillation=kind == "DeiT"))
    return foreign.randomise(theirs, seed), model


@pytest.mark.parametrize(("seed", "size"), SIZES)
def test_vit_equals_transformers_from_memory_and_from_its_file(seed, size, tmp_path):
    theirs, model = vit(seed, size)
    source = on_disk(theirs, tmp_path)
    taken = foreign.take(source.tensors, model, "image", grid=source.grid)
    assert not taken.notes and taken.layout == "transformers ViT"
    assert set(taken.left_out) == {"pooler.dense.weight", "pooler.dense.bias"}
    same(taken.params, foreign.take(arrays(theirs), model, "image").params)
    params = load(source.tensors, model, "image")
    pixels = helpers.pixels(3, seed, *size)
    expected = foreign.run(theirs, tensor(pixels)).last_hidden_state
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)


@pytest.mark.parametrize("saved", [False, True])
def test_vit_inside_a_classifier_equals_its_tokens(saved, tmp_path):
    theirs, model = vit(3, (24, 16), network="ForImageClassification")
    tensors = on_disk(theirs, tmp_path).tensors if saved else arrays(theirs)
    params = load(tensors, model, "image")
    pixels = helpers.pixels(2, 3, 24, 16)
    expected = foreign.run(theirs.vit, tensor(pixels)).last_hidden_state
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)


def test_vit_at_another_size_equals_transformers_own_interpolation():
    theirs, _ = vit(4, (32, 32))
    _, model = vit(4, (56, 16))
    params = load(arrays(theirs), model, "image")
    pixels = helpers.pixels(2, 4, 56, 16)
    expected = foreign.run(theirs, tensor(pixels), interpolate_pos_encoding=True)
    ours = foreign.image_features(model, params, pixels)
    assert_near(ours, expected.last_hidden_state, NEAR)


@pytest.mark.parametrize(
    ("network", "before"),
    [("Model", ""), ("ForImageClassificationWithTeacher", "deit.")],
)
@pytest.mark.parametrize("saved", [False, True])
def test_deit_equals_transformers_with_its_second_token(
    network, before, saved, tmp_path
):
    theirs, model = vit(5, (48, 16), "DeiT", network)
    tensors = on_disk(theirs, tmp_path).tensors if saved else arrays(theirs)
    assert f"{before}embeddings.distillation_token" in tensors
    params = load(tensors, model, "image")
    pixels = helpers.pixels(2, 5, 48, 16)
    inner = theirs.deit if before else theirs
    expected = foreign.run(inner, tensor(pixels)).last_hidden_state
    assert expected.shape[1] == 2 + 12
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)


def test_deit_without_its_second_token_equals_a_vit_of_the_rest():
    deit, _ = vit(6, (32, 16), "DeiT")
    plain, model = vit(6, (32, 16))
    state = deit.state_dict()
    del state["embeddings.distillation_token"]
    table = state["embeddings.position_embeddings"]
    state["embeddings.position_embeddings"] = torch.cat([table[:, :1], table[:, 2:]], 1)
    plain.load_state_dict(state)
    taken = foreign.take(arrays(deit), model, "image", distillation="drop")
    assert "embeddings.distillation_token" in taken.left_out
    assert "distillation token" in " ".join(taken.notes)
    same(taken.params, foreign.take(arrays(plain), model, "image").params)
    params = load(arrays(deit), model, "image", distillation="drop")
    pixels = helpers.pixels(2, 6, 32, 16)
    expected = foreign.run(plain, tensor(pixels)).last_hidden_state
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)


# --- transformers: BERT --------------------------------------------------------------


def bert(seed, network="BertModel", tied=True):
    """A BERT of transformers, and our pair with a tower of its sizes."""
    ours = foreign.tower(seed + 10)
    config = foreign.bert_config(ours, tie_word_embeddings=tied)
    theirs = foreign.randomise(getattr(transformers, network)(config), seed)
    head = {"BertModel": "none"}.get(network, "tied" if tied else "untied")
    return theirs, dual(text=ours | dict(positions=20), mlm_output=head)


def old_names(tensors):
    """As the first BERTs of the hub still have them."""
    pairs = (
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
    )
    for new, old in pairs:
        tensors = {name.replace(new, old): x for name, x in tensors.items()}
    return tensors


@pytest.mark.parametrize("seed", range(3))
def test_bert_equals_transformers_on_padded_texts(seed, tmp_path):
    theirs, model = bert(seed)
    tensors = on_disk(theirs, tmp_path).tensors
    taken = foreign.take(tensors, model, "text")
    same(taken.params, foreign.take(arrays(theirs), model, "text").params)
    same(taken.params, foreign.take(old_names(tensors), model, "text").params)
    tokens = helpers.texts(foreign.COUNTS, 12, seed)
    ours = foreign.text_features(model, load(tensors, model, "text"), tokens)
    expected = foreign.read(theirs, tokens, foreign.real()).last_hidden_state
    assert_near(ours, expected, NEAR)


def assert_same_words(theirs, model, tensors, **options):
    """Features and logits for every word of the vocabulary."""
    params = load(tensors, model, "text", "mlm_head", **options)
    tokens, real = foreign.BERT_TOKENS, foreign.real()
    features = foreign.text_features(model, params, tokens)
    expected = foreign.read(theirs.bert, tokens, real).last_hidden_state
    assert_near(features, expected, NEAR)
    logits = helpers.apply(model, params, "mlm_logits", features)
    assert_near(logits, foreign.read(theirs, tokens, real).logits, 2 * NEAR)


@pytest.mark.parametrize("names", ["memory", "file", "old"])
def test_bert_for_masked_words_equals_transformers(names, tmp_path):
    theirs, model = bert(3, "BertForMaskedLM")
    tensors = on_disk(theirs, tmp_path).tensors
    assert "cls.predictions.decoder.weight" not in tensors
    tensors = {"memory": arrays(theirs), "old": old_names(tensors)}.get(names, tensors)
    assert_same_words(theirs, model, tensors)


def test_a_tied_head_can_start_an_untied_one(tmp_path):
    theirs, _ = bert(4, "BertForMaskedLM")
    _, model = bert(4, "BertForMaskedLM", tied=False)
    assert_same_words(theirs, model, on_disk(theirs, tmp_path).tensors)


def untied():
    """An untied BERT whose two biases agree, as transformers before 5 had them."""
    theirs, model = bert(5, "BertForMaskedLM", tied=False)
    head = theirs.cls.predictions
    assert head.bias is not head.decoder.bias
    with torch.no_grad():
        head.bias.copy_(head.decoder.bias)
    return theirs, model


@pytest.mark.parametrize("saved", [False, True])
def test_an_untied_head_equals_transformers(saved, tmp_path):
    theirs, model = untied()
    tensors = on_disk(theirs, tmp_path).tensors if saved else arrays(theirs)
    assert_same_words(theirs, model, tensors)


def test_of_two_biases_the_one_that_transformers_adds_is_taken():
    theirs, model = bert(5, "BertForMaskedLM", tied=False)
    tensors = arrays(theirs)
    with pytest.raises(UserError, match=r"1 unused: cls\.predictions\.bias \(24,\)"):
        foreign.take(tensors, model, "text", "mlm_head")
    ignore = (*foreign.IGNORE, r"^cls\.predictions\.bias$")
    assert_same_words(theirs, model, tensors, ignore=ignore)


def test_an_untied_head_is_refused_by_a_tied_one():
    theirs, _ = untied()
    _, model = bert(5, "BertForMaskedLM")
    with pytest.raises(UserError, match=r"1 unused: cls\.predictions\.decoder\.weight"):
        foreign.take(arrays(theirs), model, "text", "mlm_head")


# --- transformers: CLIP --------------------------------------------------------------


def clip_pair(seed, activation="quick_gelu", temperature="learned", **grid):
    """A CLIP of transformers for 32x32, and our pair of its sizes."""
    image, text = foreign.tower(seed + 20), foreign.tower(seed + 30)
    configs = foreign.clip_configs(image, text, 32, 8, 10, activation)
    image |= dict(height=32, width=32, patch=(8, 8)) | grid
    more = dict(embedding=10, temperature=temperature)
    model = foreign.clip(image, text, activation, **more)
    return foreign.clip_model(*configs, seed), model


@pytest.mark.parametrize(
    ("seed", "activation", "grid"),
    [
        (0, "quick_gelu", {}),
        (1, "gelu", {}),
        (2, "quick_gelu", dict(height=48, width=16)),
        (3, "gelu", dict(height=24)),
    ],
)
def test_clip_equals_transformers_in_tokens_vectors_and_scale(
    seed, activation, grid, tmp_path
):
    theirs, model = clip_pair(seed, activation, **grid)
    taken = foreign.take(on_disk(theirs, tmp_path).tensors, model)
    assert taken.layout == "transformers CLIP" and len(taken.notes) == bool(grid)
    assert not taken.left_out and not taken.kept
    params = load(arrays(theirs), model)
    same(taken.params, helpers.arrays(params))
    tokens = foreign.clip_tokens(seed=seed)
    pixels = helpers.pixels(3, seed, model.image.height, model.image.width)
    out = foreign.read(
        lambda **text: theirs(
            pixel_values=tensor(pixels), interpolate_pos_encoding=True, **text
        ),
        tokens,
        foreign.real(),
    )
    seen = out.vision_model_output.last_hidden_state  # not yet normed
    seen = foreign.run(theirs.vision_model.post_layernorm, seen)
    assert_near(foreign.image_features(model, params, pixels), seen, NEAR)
    said = out.text_model_output.last_hidden_state
    assert_near(foreign.text_features(model, params, tokens), said, NEAR)
    image = helpers.apply(model, params, "encode_image", pixels)
    assert_near(image, out.image_embeds, NEAR)
    text = helpers.apply(model, params, "encode_text", tokens)
    assert_near(text, out.text_embeds, NEAR)
    scale = min(np.exp(theirs.logit_scale.item()), 100)
    np.testing.assert_allclose(helpers.apply(model, params, "scale"), scale, rtol=1e-6)


@pytest.mark.parametrize(
    "network", ["CLIPVisionModel", "CLIPVisionModelWithProjection"]
)
@pytest.mark.parametrize("before", ["as named", "vision_model."])
def test_clips_image_tower_alone_equals_transformers(network, before):
    whole, model = clip_pair(4, temperature="none")
    theirs = getattr(transformers, network)(whole.config.vision_config)
    foreign.randomise(theirs, 7)
    tensors, projected = arrays(theirs), network.endswith("Projection")
    if before != "as named" and not projected:  # as transformers before 5 wrote it
        tensors = {before + name: x for name, x in tensors.items()}
    parts = ("image", "image_projection") if projected else ("image",)
    params = load(tensors, model, *parts)
    pixels = helpers.pixels(2, 4, 32, 32)
    out = foreign.run(theirs, tensor(pixels))
    norm = theirs.vision_model.post_layernorm if projected else theirs.post_layernorm
    expected = foreign.run(norm, out.last_hidden_state)
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)
    if projected:
        unit = torch.nn.functional.normalize(out.image_embeds)
        assert_near(helpers.apply(model, params, "encode_image", pixels), unit, NEAR)


@pytest.mark.parametrize("network", ["CLIPTextModel", "CLIPTextModelWithProjection"])
@pytest.mark.parametrize("before", ["as named", "text_model."])
def test_clips_text_tower_alone_equals_transformers(network, before):
    whole, model = clip_pair(4, temperature="none")
    theirs = getattr(transformers, network)(whole.config.text_config)
    foreign.randomise(theirs, 8)
    tensors, projected = arrays(theirs), network.endswith("Projection")
    if before != "as named" and not projected:
        tensors = {before + name: x for name, x in tensors.items()}
    parts = ("text", "text_projection") if projected else ("text",)
    params = load(tensors, model, *parts)
    tokens = foreign.clip_tokens(seed=4)
    out = foreign.read(theirs, tokens, foreign.real())
    ours = foreign.text_features(model, params, tokens)
    assert_near(ours, out.last_hidden_state, NEAR)
    if projected:
        unit = torch.nn.functional.normalize(out.text_embeds)
        assert_near(helpers.apply(model, params, "encode_text", tokens), unit, NEAR)


# --- timm and OpenAI, by their names -------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "grid", "patch", "kind"),
    [
        (0, (4, 4), (8, 8), {}),
        (1, (6, 2), (8, 4), dict(classes=3)),
        (2, (3, 5), (4, 8), dict(classes=3, distilled=True)),
        (3, (2, 3), (8, 8), dict(pre_norm=True)),
    ],
)
def test_vit_by_timms_names_equals_an_implementation_in_torch(seed, grid, patch, kind):
    sizes = foreign.tower(seed + 40)
    theirs = foreign.randomise(foreign.TimmVit(sizes, grid, patch, **kind), seed)
    (h, w), pre_norm = np.multiply(grid, patch).tolist(), "pre_norm" in kind
    options = dict(pre_norm=pre_norm, patch_bias=not pre_norm, norm_eps=1e-6)
    options |= dict(height=h, width=w, patch=patch, distillation="distilled" in kind)
    model = dual(image=sizes | options)
    taken = foreign.take(arrays(theirs), model, "image")
    assert taken.layout == "timm ViT" and not taken.notes
    assert all(name.startswith("head") for name in taken.left_out)
    params = load(arrays(theirs), model, "image")
    pixels = helpers.pixels(2, seed, h, w)
    expected = foreign.run(theirs, tensor(pixels))
    assert_near(foreign.image_features(model, params, pixels), expected, NEAR)


@pytest.mark.parametrize(
    ("seed", "grid", "patch", "activation"),
    [(0, (4, 4), (8, 8), "quick_gelu"), (1, (6, 2), (8, 4), "gelu")],
)
def test_clip_by_openais_names_equals_an_implementation_in_torch(
    seed, grid, patch, activation
):
    image, text = foreign.tower(seed + 50), foreign.tower(seed + 60)
    quick = activation == "quick_gelu"
    theirs = foreign.OpenAiClip(image, text, grid, patch, 10, quick)
    foreign.randomise(theirs, seed)
    h, w = np.multiply(grid, patch).tolist()
    image |= dict(height=h, width=w, patch=patch)
    model = foreign.clip(image, text, activation, embedding=10)
    # What OpenAI's archives hold beside the weights.
    extras = {n: np.array(7) for n in ("input_resolution", "context_length")}
    taken = foreign.take(arrays(theirs) | extras, model, ignore=())
    assert taken.layout == "OpenAI CLIP" and not taken.left_out
    params = load(arrays(theirs), model)
    pixels, tokens = helpers.pixels(3, seed, h, w), foreign.clip_tokens(seed=seed)
    ids = torch.tensor(tokens.astype(np.int64))
    seen, said, *units, scale = foreign.run(theirs, tensor(pixels), ids)
    assert_near(foreign.image_features(model, params, pixels), seen, NEAR)
    ours, real = foreign.text_features(model, params, tokens), foreign.real()
    assert_near(ours[real], said[real], NEAR)  # OpenAI's reads padding after the end
    for method, x, unit in zip(("image", "text"), (pixels, tokens), units, strict=True):
        assert_near(helpers.apply(model, params, f"encode_{method}", x), unit, NEAR)
    np.testing.assert_allclose(
        helpers.apply(model, params, "scale"), min(scale.item(), 100), rtol=1e-6
    )
