"""The PyTorch file of an export: equal to JAX and to transformers, and on its own."""

import functools
import io
import json
import re
import shutil
import subprocess
import sys

import helpers
import numpy as np
import pytest
import tokenizers
from PIL import Image

from unipt_jax.data import images
from unipt_jax.models import unipt

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")
modeling = pytest.importorskip("unipt_jax.modeling_unipt")

HEIGHT, WIDTH, VOCABULARY = helpers.HEIGHT, helpers.WIDTH, helpers.VOCABULARY
IDS = helpers.PAD, helpers.CLS, helpers.SEP
MEAN, STD = [0.5, 0.4, 0.3], [0.5, 0.6, 0.7]


def section(**changes):
    """A whole `model` section, every field present, of one or two layers."""
    image, text = dict(changes.pop("image", {})), dict(changes.pop("text", {}))
    common = dict(activation="gelu", norm_eps=1e-6, remat="none", attention="xla")
    vit = dict(distillation=False, pre_norm=False, patch_bias=True, layers=2)
    text = common | dict(kind="bert", layers=2) | text
    pool = dict(pool="max", pool_padding=False, pool_special=True, projection_bias=True)
    head = dict(temperature="none", temperature_init=0.07, mlm_output="tied")
    return helpers.config(
        image=common | vit | image, text=text, **pool | head | changes
    )


def tokenizer(ids):
    """Whole words "w5" .. "w23", between the tokens of `ids` = (pad, cls, sep)."""
    vocabulary = {f"w{i}": i for i in range(VOCABULARY)}
    names = dict(zip(ids, ("pad", "cls", "sep"), strict=True))
    vocabulary = {names.get(i, word): i for word, i in vocabulary.items()}
    words = tokenizers.models.WordLevel(vocabulary, unk_token="w4")
    backend = tokenizers.Tokenizer(words)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single="cls $A sep", special_tokens=[("cls", ids[1]), ("sep", ids[2])]
    )
    # What a stored tokenizer may ask for, and what must not happen:
    backend.enable_truncation(3)
    backend.enable_padding(length=30)
    return backend


def write(folder, model, weights, ids=IDS):
    """An exported folder. ids: of pad, cls and sep."""
    config = {
        "format": "unipt_jax export 1",
        "model": model | {"image": {"kind": "vit"} | model["image"]},
        "vocabulary": VOCABULARY,
        "pixels": {"mean": MEAN, "std": STD, "fit": "squeeze"},
        "lengths": [6, 9, 16],
        "heads": any("mlm_head" in name for name in weights),
        "from": "a test",
    } | dict(zip(("pad", "cls", "sep"), ids, strict=True))
    weights = {name: torch.tensor(x).contiguous() for name, x in weights.items()}
    safetensors_torch.save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer(ids).save(str(folder / "tokenizer.json"))
    shutil.copy(modeling.__file__, folder)
    return folder


def named_for_torch(params, patch=(8, 4)):
    """Our parameters under the names and in the layout that the file expects."""
    out = {}
    for path, x in helpers.arrays(params).items():
        *parents, leaf = path.split("/")
        if path == "image/patch_embedding/kernel":  # (ph * pw * 3, D) -> (D, 3, ph, pw)
            x = x.reshape(*patch, 3, -1).transpose(3, 2, 0, 1)
        elif leaf == "kernel":
            x = x.T
        leaf = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
        out[".".join([*parents, leaf]).replace("block_", "blocks.")] = x
    return out


def build(folder, ids=IDS, **changes):
    """The same small random model twice: in JAX with its parameters, and loaded."""
    model = section(**changes)
    names = dict(zip(("pad", "cls", "sep"), ids, strict=True))
    ours = unipt.build(model, vocabulary=VOCABULARY, **names)
    params = helpers.random_like(lambda key: unipt.initialise(ours, key))
    write(folder, model, named_for_torch(params), ids)
    return ours, params, modeling.load(folder)


def close(expected, tensor):
    # float32 sums of some dozens of terms, in another order
    np.testing.assert_allclose(tensor.detach().numpy(), expected, rtol=0, atol=1e-5)


QUICK = dict(activation="quick_gelu")
CLIP_IMAGE = dict(pre_norm=True, patch_bias=False) | QUICK
CLIP_TEXT = dict(kind="clip") | QUICK
LEARNED = dict(temperature="learned")
CASES = {
    "plain": {},
    "deit": dict(image=dict(distillation=True), pool_special=False, **LEARNED),
    "padding": dict(text=QUICK, pool_padding=True, mlm_output="untied"),
    "bert_token": dict(image=CLIP_IMAGE, pool="token", mlm_output="none"),
    "clip_max": dict(image=QUICK, text=CLIP_TEXT, projection_bias=False),
    "clip_token": dict(image=CLIP_IMAGE, text=CLIP_TEXT, pool="token", **LEARNED),
}


@pytest.mark.parametrize("case", CASES)
def test_towers_embeddings_and_head_equal_jax(case, tmp_path):
    pad = (
        helpers.SEP if "clip" in case else helpers.PAD
    )  # CLIP pads with its last token
    ours, params, theirs = build(tmp_path, (pad, *IDS[1:]), **CASES[case])
    pixels, tokens = helpers.pixels(3), helpers.texts([3, 9, 1], 12)
    tokens[tokens == helpers.PAD] = pad
    torch_pixels = torch.tensor(pixels).permute(0, 3, 1, 2)
    torch_tokens = torch.tensor(tokens).long()

    def run(method, *args):
        return helpers.apply(ours, params, method, *args)

    close(run("encode_image", pixels), theirs.embed_pixels(torch_pixels))
    close(run("encode_text", tokens), theirs.embed_tokens(torch_tokens))
    features = run(lambda model, x: model.image(x, None), pixels)
    close(features, theirs.image_features(torch_pixels))
    features = run(lambda model, x: model.text_features(x, None), tokens)
    close(features, theirs.text_features(torch_tokens))
    if ours.mlm_output != "none":
        logits = run("mlm_logits", features)
        close(logits, theirs.mlm_logits(torch.tensor(features)))


def test_texts_are_cut_and_padded_as_the_encoder_does(tmp_path):
    # With pool_padding, every [PAD] more or less changes an embedding.
    _, _, model = build(tmp_path, pool_padding=True)
    short, long = "w5 w6", " ".join(f"w{i % 19 + 5}" for i in range(20))
    cut = [1, *(i % 19 + 5 for i in range(14)), 2]  # 16, of which the last is [SEP]
    alone = torch.tensor([[1, 5, 6, 2, 0, 0]])
    pair = torch.tensor([[1, 5, 6, 2] + [0] * 12, cut])
    assert torch.equal(model.tokenize([short]), alone)
    assert torch.equal(model.tokenize([short, long]), pair)
    close(model.embed_tokens(pair).detach(), model.encode_text([short, long]))
    by_one = torch.cat([model.embed_tokens(alone), model.embed_tokens(pair[1:])])
    close(by_one.detach(), model.encode_text([short, long], batch_size=1))
    assert not torch.allclose(by_one[0], model.encode_text([short, long])[0], atol=1e-3)


def test_encode_image_equals_jax_on_pixels_made_by_hand(tmp_path):
    ours, params, model = build(tmp_path)
    sizes = ((40, 30), (HEIGHT, WIDTH), (9, 50))
    pictures = [Image.fromarray(helpers.images(1, 0, *size)[0]) for size in sizes]
    pixels = [np.asarray(p.resize((WIDTH, HEIGHT), Image.BICUBIC)) for p in pictures]
    pixels = (np.stack(pixels) / 255 - np.array(MEAN)) / np.array(STD)
    expected = helpers.apply(ours, params, "encode_image", pixels.astype(np.float32))
    for batch_size in (1, 2, 64):
        out = model.encode_image(pictures, batch_size=batch_size)
        assert (out.dtype, out.requires_grad) == (torch.float32, False)
        close(expected, out)
    np.testing.assert_allclose(out.norm(dim=1), 1, rtol=1e-6)


def pictures():
    """A noisy picture in each mode that comes in, with the ways they are special."""
    rng = np.random.default_rng(3)
    rgb = Image.fromarray(rng.integers(0, 256, (37, 21, 3), np.uint8))
    alpha = Image.fromarray(rng.integers(0, 256, (37, 21), np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (37, 21), np.uint16))
    see_through = rgb.convert("P")
    see_through.info["transparency"] = 0
    out = {mode: rgb.convert(mode) for mode in ("RGB", "CMYK", "L", "P", "1", "YCbCr")}
    out |= {"RGBA": rgb.copy(), "LA": rgb.convert("LA"), "I;16": deep}
    out["RGBA"].putalpha(alpha)
    out["LA"].putalpha(alpha)
    out |= {"P with a transparent colour": see_through, "F": rgb.convert("F")}
    tiff = io.BytesIO()
    rgb.save(tiff, "tiff", tiffinfo={0x0112: 6})
    out["a turned TIFF"] = Image.open(tiff)
    for turn in range(1, 10):  # 9 is no turn at all
        out[f"turn {turn}"] = rgb.copy()
        out[f"turn {turn}"].getexif()[0x0112] = turn
    return out


@pytest.mark.parametrize("fit", ["squeeze", "crop", "pad"])
def test_pictures_of_all_modes_equal_the_packages_pixel_for_pixel(fit, tmp_path):
    model = build(tmp_path)[2]
    model.pixels["fit"] = fit
    mean = np.array([255 * m for m in MEAN], np.float32)
    factor = np.array([1 / (255 * s) for s in STD], np.float32)
    for name, picture in pictures().items():
        out = model.preprocess(picture).numpy()
        pixels = images.resize(picture, HEIGHT, WIDTH, fit).astype(np.float32)
        expected = ((pixels - mean) * factor).transpose(2, 0, 1)
        np.testing.assert_array_equal(out, expected, strict=True, err_msg=name)


def test_fits_by_hand():
    picture = Image.fromarray(helpers.images(1, 0, 40, 20)[0])
    half = np.asarray(picture.resize((10, 20), Image.BICUBIC))
    np.testing.assert_array_equal(modeling.resize(picture, 10, 10, "crop"), half[5:15])
    padded = modeling.resize(picture, 20, 17, "pad")
    np.testing.assert_array_equal(padded[:, 3:13], half)
    assert padded.sum() == half.sum()  # black around it
    # 3 x 1 within 2 x 2: no side may vanish, none may fall short of the target.
    thin = Image.fromarray(np.full((300, 1, 3), 7, np.uint8))
    assert (modeling.resize(thin, 2, 2, "crop") == 7).all()
    assert modeling.resize(thin, 2, 2, "pad").sum() == 2 * 3 * 7


def randomise(module):
    """Weights that hide nothing: transformers' own are near 0, with biases of 0."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, x in module.named_parameters():
            x.normal_(0, 0.3)
            if re.search(r"norm.*weight", name.lower()):
                x += 1
    return module.eval()


def renamed(module, table):
    """A module's tensors, their names rewritten by pairs "from=to", one by one."""
    out = {}
    for name, x in module.state_dict().items():
        for pair in table.split():
            name = name.replace(*pair.split("="))
        out[name] = x.numpy()
    return out


CLIP_NAMES = """
vision_model.=image. text_model.=text.
embeddings.position_embedding.weight=position_embedding.weight embeddings.=
image.position_embedding.weight=image.position_embedding class_embedding=class_token
pre_layrnorm=pre_norm post_layernorm=norm final_layer_norm=norm encoder.layers=blocks
layer_norm=norm self_attn=attention q_proj=query k_proj=key v_proj=value out_proj=out
visual_projection=image_projection logit_scale=log_scale
"""


@pytest.mark.parametrize("pad", [0, 23], ids=["pad", "pad_is_sep"])
@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip_equals_transformers(activation, pad, tmp_path):
    transformers = pytest.importorskip("transformers")
    cls, sep = 22, 23
    tower = dict(intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    tower["hidden_act"] = activation
    text = dict(vocab_size=VOCABULARY, hidden_size=12, max_position_embeddings=16)
    ids = dict(pad_token_id=pad, bos_token_id=cls, eos_token_id=sep)
    vision = dict(image_size=16, patch_size=8, hidden_size=16)
    config = transformers.CLIPConfig(
        text_config=tower | text | ids, vision_config=tower | vision, projection_dim=8
    )
    theirs = transformers.CLIPModel(config)
    weights = renamed(randomise(theirs), CLIP_NAMES)
    weights["image.class_token"] = weights["image.class_token"][None, None]
    tower = dict(activation=activation, norm_eps=1e-5)
    image = CLIP_IMAGE | tower | dict(width=16, patch=[8, 8])
    text = CLIP_TEXT | tower | dict(positions=16)
    head = dict(pool="token", projection_bias=False, mlm_output="none") | LEARNED
    model = section(image=image, text=text, **head)
    ours = modeling.load(write(tmp_path, model, weights, (pad, cls, sep)))
    tokens = torch.full((3, 10), pad)
    for row, n in zip(tokens, (1, 8, 4), strict=True):
        row[: n + 2] = torch.tensor([cls, *range(5, 5 + n), sep])
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        out = theirs(input_ids=tokens, pixel_values=pixels)
    close(out.image_embeds, ours.embed_pixels(pixels))
    close(out.text_embeds, ours.embed_tokens(tokens))


BERT_NAMES = """
embeddings.word_embeddings=text.token_embedding
embeddings.position_embeddings=text.position_embedding
embeddings.token_type_embeddings=text.type_embedding
embeddings.LayerNorm=text.embedding_norm encoder.layer.=text.blocks.
attention.self=attention attention.output.dense=attention.out
attention.output.LayerNorm=attention_norm intermediate.dense=mlp.fc1
output.dense=mlp.fc2 output.LayerNorm=mlp_norm LayerNorm=norm bert.=
cls.predictions.transform.=mlm_head. cls.predictions.=mlm_head.
"""


def test_bert_and_its_head_equal_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    tower = dict(intermediate_size=24, num_hidden_layers=2, num_attention_heads=2)
    text = dict(vocab_size=VOCABULARY, hidden_size=12, max_position_embeddings=40)
    theirs = transformers.BertForMaskedLM(transformers.BertConfig(**tower, **text))
    weights = renamed(randomise(theirs), BERT_NAMES)
    weights = {k: x for k, x in weights.items() if "decoder" not in k}  # tied copies
    model = section(text=dict(norm_eps=1e-12))
    rest = named_for_torch(build(tmp_path)[1])
    rest = {k: x for k, x in rest.items() if not k.startswith(("text.", "mlm_head."))}
    ours = modeling.load(write(tmp_path, model, rest | weights))
    tokens = torch.tensor(helpers.texts([3, 9, 1], 12)).long()
    real = tokens != helpers.PAD
    with torch.no_grad():
        out = theirs(tokens, attention_mask=real.long(), output_hidden_states=True)
    features = ours.text_features(tokens)
    close(out.hidden_states[-1][real], features[real])
    close(out.logits[real], ours.mlm_logits(features)[real])
    weight, bias = rest["text_projection.weight"], rest["text_projection.bias"]
    projected = out.hidden_states[-1].numpy() @ weight.T + bias
    highest = np.where(real[..., None], projected, -np.inf).max(1)
    unit = highest / np.linalg.norm(highest, axis=1, keepdims=True)
    close(unit, ours.embed_tokens(tokens))


def attention_of_torch_2_4(q, k, v, attn_mask):
    """NaN where a query may see no key."""
    logits = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~attn_mask, -torch.inf)
    return logits.softmax(-1) @ v


@pytest.mark.parametrize("kind", ["bert", "clip"])
def test_a_text_of_padding_alone_spoils_nothing(kind, tmp_path, monkeypatch):
    attend = "scaled_dot_product_attention"
    monkeypatch.setattr(modeling.F, attend, attention_of_torch_2_4)
    _, _, model = build(tmp_path, text=dict(kind=kind))
    tokens = torch.tensor(helpers.texts([3, 5], 9)).long()
    alone = model.embed_tokens(tokens)
    front = torch.roll(tokens[:1], 4, dims=1)  # its first tokens, causal, see nothing
    together = torch.cat([tokens, torch.zeros_like(tokens[:1]), front])
    out = model.embed_tokens(together)
    close(alone.detach(), out[:2])
    out.sum().backward()
    grads = [x.grad for x in model.parameters() if x.grad is not None]
    assert all(grad.isfinite().all() for grad in grads)
    half = model.to(torch.float16).embed_tokens(together)
    assert half.dtype == torch.float32
    assert not out[2].any() and not half[2].any()
    np.testing.assert_allclose((half * out).sum(1).detach(), [1, 1, 0, 1], atol=1e-3)


def test_no_items_give_no_rows(tmp_path):
    model = build(tmp_path)[2]
    assert not model.training
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 8)


def test_weights_that_do_not_fit_are_listed_in_one_sentence(tmp_path):
    build(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = safetensors_torch.load_file(file)
    del weights["image.norm.bias"]
    weights["image.blocks.7.norm1.bias"] = torch.zeros(3)
    weights["text_projection.bias"] = torch.zeros(5)
    safetensors_torch.save_file(weights, file)
    with pytest.raises(ValueError) as caught:
        modeling.load(tmp_path)
    assert str(caught.value) == (
        f"{file} does not hold what config.json describes (missing: image.norm.bias "
        "(16,), text_projection.bias (8,); unused: image.blocks.7.norm1.bias (3,), "
        "text_projection.bias (5,)); export the model again"
    )


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, "version https://git-lfs"])
def test_a_missing_or_damaged_file_is_one_sentence(name, content, tmp_path):
    build(tmp_path)
    (tmp_path / name).unlink()
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} cannot be read .*; copy") as caught:
        modeling.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("format", "unipt_jax export 2", "is not of format 'unipt_jax export 1'; give"),
        ("lengths", None, "lacks what this file needs .*'lengths'"),
        ("model/text/kind", "gru", "text.kind 'gru' is not one of bert, clip; use"),
        ("model/image/activation", "tanh", "'tanh' is not one of gelu, quick_gelu"),
        ("model/pool", "mean", "pool 'mean' is not one of max, token; use"),
        ("pixels/fit", "stretch", "'stretch' is not one of squeeze, crop, pad; use"),
    ],
)
def test_an_unknown_or_missing_field_is_one_sentence(path, value, sentence, tmp_path):
    build(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    *parents, field = path.split("/")
    within = functools.reduce(dict.__getitem__, parents, config)
    del within[field]
    if value is not None:
        within[field] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=sentence):
        modeling.load(tmp_path)


@pytest.mark.parametrize(
    ("use", "sentence"),
    [
        (lambda m: m.encode_text("w5 w6"), r"takes a list of texts; write \['w5 w6'\]"),
        (lambda m: m.encode_text(["w5"], batch_size=0), "batch_size is 0; give"),
        (lambda m: m.embed_pixels(torch.zeros(1, 3, 8, 16)), "8x16, not 16x8; use"),
        (lambda m: m.embed_tokens(torch.ones(1, 41).long()), "41 tokens .* 40 fit"),
        (lambda m: m.mlm_logits(torch.zeros(1, 12)), "has no mlm_head; export it"),
    ],
)
def test_wrong_use_is_one_sentence(use, sentence, tmp_path):
    weights = named_for_torch(build(tmp_path)[1])
    weights = {k: x for k, x in weights.items() if "mlm_head" not in k}
    model = modeling.load(write(tmp_path, section(), weights))
    with pytest.raises((ValueError, TypeError), match=sentence):
        use(model)


ALONE = """
import json, sys
class Blocked:
    def find_spec(self, name, *_):
        if name.split(".")[0] in ("jax", "jaxlib", "flax", "unipt_jax", "transformers"):
            raise ImportError(name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import modeling_unipt
from PIL import Image
model = modeling_unipt.load(sys.argv[1])
image = model.encode_image([Image.new("RGB", (30, 60), "teal")])
print(json.dumps([image.tolist(), model.encode_text(["w5 w6 w7"]).tolist()]))
"""


def test_the_folder_works_without_jax_and_this_package(tmp_path):
    model = build(tmp_path)[2]
    command = [sys.executable, "-P", "-c", ALONE, str(tmp_path)]
    done = subprocess.run(command, cwd="/", capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    image, text = json.loads(done.stdout)
    close(image, model.encode_image([Image.new("RGB", (30, 60), "teal")]))
    close(text, model.encode_text(["w5 w6 w7"]))
