"""Exports in others' layouts open as theirs do; mistakes of the job are one sentence."""

import functools
import json
import re
import shutil
import types

import foreign
import helpers
import numpy as np
import pytest
import rundirs
import safetensors.numpy

import unipt_jax
from configs import evaluate as evaluate_config
from configs import export as export_config
from unipt_jax import evaluate, export, main, transfer, weights
from unipt_jax.data import images, tokenizers, transforms
from unipt_jax.errors import UserError

torch, transformers = foreign.torch, foreign.transformers

SQUARE = dict(height=32, width=32)
KINDS = {
    "bert": ("vit_b16", dict(image=dict(patch=(8, 4)))),
    "deit": ("deit_s16", dict(mlm_output="untied", temperature="learned")),
    "square": ("clip_b16", dict(image=SQUARE)),
    "tall": ("clip_b16", dict(image=dict(patch=(8, 4)))),  # 48x16 pixels
    "fixed": ("clip_b16", dict(image=SQUARE, temperature="fixed")),  # at 0.01
    "max_pool": ("clip_b16", dict(image=SQUARE, pool="max")),
}
SEERS = {"bert": transformers.ViTModel, "deit": transformers.DeiTModel}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}
open_tokenizer = functools.cache(tokenizers.load)
NEAR = 1e-5  # float32 sums of some dozens of terms in another order, of values up to 5


def config(run, **fields):
    """The export job's config."""
    out = export_config.get_config()
    out.update(model=str(run), **fields)
    return out


class Made:
    """Runs of each kind, opened, and their exports: each is made once."""

    def __init__(self, folder, words, pairs):
        self.folder, self.words, self.pairs = folder, words, pairs

    @functools.cache  # noqa: B019  one object for the whole file
    def run(self, kind):
        tower, changes = KINDS[kind]
        folder = self.folder / f"run_{kind}"
        tokenizer = self.pairs if tower == "clip_b16" else self.words
        rundirs.make_run(
            folder, rundirs.section(tower, **changes), open_tokenizer(tokenizer)
        )
        return folder

    @functools.cache  # noqa: B019
    def encoder(self, kind):
        return unipt_jax.load(self.run(kind))

    @functools.cache  # noqa: B019
    def export(self, kind, layout, heads):
        folder = self.folder / f"export_{kind}_{layout}_{heads}"
        job = config(self.run(kind), layout=layout, heads=heads)
        export.run(job, str(folder))
        return folder


@pytest.fixture(scope="module")
def made(persons, clip_vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    return Made(folder, persons / "tokenizer", clip_vocabulary)


def parity(folder):
    return json.loads((folder / "parity.json").read_text())


def opened(kind, folder):
    """transformers' network, and which tensors it missed; it may miss nothing else."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["mismatched_keys"] and not info["error_msgs"]
    return model.eval(), set(info["missing_keys"]), set(info["unexpected_keys"])


def pixels_of(encoder):
    """The pictures of the comparison as (B, H, W, 3) normalised pixels."""
    stacked = [images.resize(x, *encoder.size) for x in export.pictures(encoder)]
    stats = dict(mean=encoder.mean, std=encoder.std)
    return np.asarray(transforms.normalise(np.stack(stacked), **stats))


def tokens_of(encoder):
    """(B, L) ids of the comparison's sentences, and (B, L), False on padding."""
    ids, _ = encoder.tokenizer.encode(export.SENTENCES, encoder.lengths[-1])
    tokens = encoder.pad(ids)
    return tokens, np.arange(tokens.shape[1]) < np.array([[len(row)] for row in ids])


def seen(encoder, pixels):
    return foreign.image_features(encoder.model, encoder.params, pixels)


def said(encoder, tokens):
    return foreign.text_features(encoder.model, encoder.params, tokens)


# --- transformers --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "heads"), [("bert", False), ("bert", True), ("deit", True)]
)
def test_transformers_opens_both_towers_and_sees_the_same(kind, heads, made):
    encoder, folder = made.encoder(kind), made.export(kind, "hf", heads)
    seer, missing, unexpected = opened(transformers.AutoModel, folder / "image")
    assert type(seer) is SEERS[kind] and missing == POOLER and not unexpected
    reader, missing, unexpected = opened(transformers.BertModel, folder / "text")
    assert missing == POOLER
    assert all(name.startswith("cls.predictions.") for name in unexpected)
    assert bool(unexpected) == heads
    pixels, (tokens, real) = pixels_of(encoder), tokens_of(encoder)
    theirs = foreign.run(seer, foreign.tensor(pixels)).last_hidden_state
    foreign.assert_near(seen(encoder, pixels), theirs, NEAR)
    theirs = foreign.read(reader, tokens, real).last_hidden_state[real]
    foreign.assert_near(said(encoder, tokens)[real], theirs, NEAR)
    assert parity(folder)["max_abs_diff"] <= NEAR


@pytest.mark.parametrize("kind", SEERS)  # tied, untied
def test_transformers_head_for_masked_words_gives_the_same_logits(kind, made):
    encoder, folder = made.encoder(kind), made.export(kind, "hf", True)
    theirs, missing, unexpected = opened(transformers.BertForMaskedLM, folder / "text")
    assert not missing and not unexpected
    tokens, real = tokens_of(encoder)
    features = said(encoder, tokens)
    ours = helpers.apply(encoder.model, encoder.params, "mlm_logits", features)
    logits = foreign.read(theirs, tokens, real).logits[real]
    foreign.assert_near(ours[real], logits, 2 * NEAR)
    assert parity(folder)["by_tower"].keys() == {"image", "text", "mlm_head"}
    assert parity(folder)["by_tower"]["mlm_head"] <= 2 * NEAR


def test_a_head_that_is_not_the_models_is_noticed(made, tmp_path, monkeypatch):
    write = export.export_towers.write

    def spoilt(folder, tensors, written):
        wrong = {k: x + k.endswith("decoder.bias") for k, x in tensors.items()}
        write(folder, wrong, written)

    monkeypatch.setattr(export.export_towers, "write", spoilt)
    job = config(made.run("deit"), layout="hf", heads=True)
    with pytest.raises(UserError, match="differs from the model by 1"):
        export.run(job, str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "layout", "place"),
    [("bert", "hf", "text"), ("square", "hf", ""), ("tall", "openai", "")],
)
def test_their_tokenizer_gives_the_same_ids_and_mask(kind, layout, place, made):
    encoder = made.encoder(kind)
    folder = made.export(kind, layout, False) / place
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [*export.SENTENCES, "  two   spaces\n[MASK] ##ing <|endoftext|> \u212b"]
    ids, _ = encoder.tokenizer.encode(texts, 10**6)
    assert theirs(texts)["input_ids"] == [row.tolist() for row in ids]
    limit = encoder.lengths[-1]
    options = dict(truncation=True, padding="max_length", max_length=limit)
    found = theirs(list(export.SENTENCES), **options)
    tokens, real = tokens_of(encoder)
    np.testing.assert_array_equal(found["input_ids"], tokens)
    np.testing.assert_array_equal(found["attention_mask"], real)


@pytest.mark.parametrize(
    ("kind", "layout", "place"), [("bert", "hf", "image"), ("square", "hf", "")]
)
def test_their_image_processor_gives_the_same_pixels(kind, layout, place, made):
    encoder = made.encoder(kind)
    folder = made.export(kind, layout, False) / place
    theirs = transformers.AutoImageProcessor.from_pretrained(folder, use_fast=False)
    pictures = export.pictures(encoder)
    assert {picture.mode for picture in pictures} == {"RGB", "L"}
    found = theirs(pictures, return_tensors="np")["pixel_values"]
    expected = pixels_of(encoder).transpose(0, 3, 1, 2)
    # (x / 255 - mean) / std in another order of operations, of values up to 2
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-7)


def test_transformers_clip_gives_the_same_vectors_and_scale(made):
    encoder, folder = made.encoder("square"), made.export("square", "hf", False)
    theirs, missing, unexpected = opened(transformers.CLIPModel, folder)
    assert not missing and not unexpected
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    options = dict(truncation=True, padding=True, max_length=40, return_tensors="pt")
    pixels = foreign.tensor(pixels_of(encoder))
    words = tokenizer(list(export.SENTENCES), **options)
    out = foreign.run(theirs, pixel_values=pixels, **words)
    pictures, texts = export.pictures(encoder), list(export.SENTENCES)
    foreign.assert_near(encoder.encode_image(pictures), out.image_embeds, 2e-6)
    foreign.assert_near(encoder.encode_text(texts), out.text_embeds, 2e-6)
    assert theirs.logit_scale.item() == np.asarray(encoder.params["log_scale"])
    assert parity(folder)["left_out"] == [] and parity(folder)["max_abs_diff"] <= 2e-6


# --- timm and OpenAI -----------------------------------------------------------------


def held(folder):
    return safetensors.numpy.load_file(folder / "model.safetensors")


def assert_read_back(encoder, folder, layout, *parts):
    """The file is of that layout, and gives the run's parameters to the bit."""
    tensors, params = held(folder), helpers.arrays(encoder.params)
    assert weights.detect(tensors, params) is layout
    geometry = transfer.Geometry.of(encoder.model.image)
    taken = foreign.take(tensors, encoder.model, *parts, ignore=(), grid=geometry.grid)
    wanted = {p: x for p, x in params.items() if not parts or p.split("/")[0] in parts}
    assert taken.left_out == taken.notes == ()
    foreign.same(taken.params, wanted)
    left = [path for path in params if path not in wanted]
    assert parity(folder)["left_out"] == left
    assert parity(folder)["tensors"] == len(tensors)
    assert parity(folder)["by_tower"]["tensors"] == 0


@pytest.mark.parametrize("kind", ["bert", "deit", "tall"])
def test_timms_vit_takes_every_tensor_and_sees_the_same(kind, made):
    encoder, folder = made.encoder(kind), made.export(kind, "timm", False)
    assert_read_back(encoder, folder, weights.TIMM, "image")
    image = encoder.model.image
    ours = dict(features=16, layers=2, heads=2, hidden=24)
    grid = (48 // image.patch[0], 16 // image.patch[1])
    options = dict(distilled=image.distillation, pre_norm=image.pre_norm)
    theirs = foreign.TimmVit(ours, grid, image.patch, **options).eval()
    tensors = {name: torch.tensor(x) for name, x in held(folder).items()}
    theirs.load_state_dict(tensors, strict=True)
    if kind != "tall":  # that one's activation is another than in `foreign`
        pixels = pixels_of(encoder)
        found = foreign.run(theirs, foreign.tensor(pixels))
        foreign.assert_near(seen(encoder, pixels), found, 2 * NEAR)  # eps is another


@pytest.mark.parametrize(
    ("kind", "name", "activation"),
    [
        ("bert", "vit_base_patch16_224", "gelu"),
        ("deit", "deit_base_distilled_patch16_224", "gelu"),
        ("tall", "vit_base_patch16_clip_224", "quick_gelu"),  # it has a norm before
    ],
)
def test_timms_config_names_the_network_and_its_sizes(kind, name, activation, made):
    written = json.loads((made.export(kind, "timm", False) / "config.json").read_text())
    assert written["architecture"] == name
    assert written["model_args"] == dict(
        img_size=[48, 16],
        patch_size=8 if kind == "deit" else [8, 4],
        embed_dim=16,
        depth=2,
        num_heads=2,
        mlp_ratio=1.5,
        act_layer=activation,
    )
    assert written["pretrained_cfg"]["input_size"] == [3, 48, 16]


@pytest.mark.parametrize("kind", ["square", "tall"])
def test_openais_clip_takes_every_tensor_and_gives_the_same_vectors(kind, made):
    encoder, folder = made.encoder(kind), made.export(kind, "openai", False)
    assert_read_back(encoder, folder, weights.OPENAI)
    both = dict(layers=2, heads=2, hidden=24)
    patch = encoder.model.image.patch
    grid = (encoder.size[0] // patch[0], encoder.size[1] // patch[1])
    towers = dict(features=16) | both, dict(features=12) | both
    words = dict(words=len(encoder.tokenizer), length=40)
    theirs = foreign.OpenAiClip(*towers, grid, patch, 8, **words).eval()
    tensors = {name: torch.tensor(x) for name, x in held(folder).items()}
    theirs.load_state_dict(tensors, strict=True)
    pixels, (tokens, _) = pixels_of(encoder), tokens_of(encoder)
    inputs = foreign.tensor(pixels), torch.tensor(tokens).long()
    _, _, image, text, _ = foreign.run(theirs, *inputs)
    pictures, texts = export.pictures(encoder), list(export.SENTENCES)
    foreign.assert_near(encoder.encode_image(pictures), image, 2e-6)
    foreign.assert_near(encoder.encode_text(texts), text, 2e-6)


@pytest.mark.parametrize(
    ("kind", "layout"), [("square", "openai"), ("tall", "openai"), ("square", "hf")]
)
def test_load_of_a_clip_export_equals_load_of_the_run(kind, layout, made):
    run, other = made.encoder(kind), unipt_jax.load(made.export(kind, layout, False))
    assert other.size == run.size and (other.mean, other.std) == (run.mean, run.std)
    pictures, texts = export.pictures(run), list(export.SENTENCES)
    seen, again = run.encode_image(pictures), other.encode_image(pictures)
    np.testing.assert_array_equal(seen, again, strict=True)
    # Padded to another length: a CLIP's files have no list of lengths.
    said, again = run.encode_text(texts), other.encode_text(texts)
    np.testing.assert_allclose(said, again, rtol=0, atol=5e-7)


@pytest.mark.parametrize("layout", ["hf", "openai"])
def test_a_scale_that_was_not_learned_goes_along_too(layout, made):
    folder = made.export("fixed", layout, False)
    assert held(folder)["logit_scale"] == pytest.approx(np.log(100), rel=2e-7)
    assert "log_scale" not in helpers.arrays(made.encoder("fixed").params)
    assert unipt_jax.load(folder).model.temperature == "learned"


@pytest.mark.parametrize(
    ("kind", "layout", "sentence"),
    [
        ("tall", "hf", "knows square images alone, .* takes 48x16; use .*unipt or op"),
        ("max_pool", "hf", "no CLIP as others know it .pool is 'max'.*=unipt"),
        ("max_pool", "openai", "no CLIP as others know it .pool is 'max'.*=unipt"),
        ("bert", "openai", "has no CLIP towers; use --config.layout=unipt, hf or timm"),
    ],
)
def test_what_a_layout_cannot_hold_is_refused(kind, layout, sentence, made, refused):
    refused(sentence, model=str(made.run(kind)), layout=layout)


# --- mistakes ------------------------------------------------------------------------


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Exports through `main`: exit code 1, one sentence, and nothing is left behind."""

    def run(pattern, workdir=tmp_path / "place" / "target", **fields):
        written = export_config.get_config()
        written.update(fields)
        alone = dict(distributed="off", coordinator="", processes=None, process=None)
        flags = types.SimpleNamespace(
            config=written, workdir=str(workdir), patience=1.0, **alone
        )
        monkeypatch.setattr(main, "parse", lambda _: flags)
        assert main.run(["program"]) == 1
        said = capsys.readouterr().err
        assert re.fullmatch(f"error: .*{pattern}.*\n", said), said
        assert list(tmp_path.rglob("*target*")) == []

    return run


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (dict(model=""), "nothing to export: give a run directory with --config.model"),
        (dict(layout="onnx"), "layout 'onnx' is not one of unipt, hf, timm, openai; c"),
        (dict(checkpoint="newest"), "run_bert has no checkpoint 'newest' yet"),
        (dict(workdir="gs://bucket/x"), "gs://bucket/x is no local folder; export to"),
    ],
)
def test_a_mistake_is_one_sentence(fields, sentence, made, refused):
    refused(sentence, **(dict(model=str(made.run("bert"))) | fields))


def test_a_step_that_is_not_there_is_one_sentence(made, refused):
    refused(
        "run_bert has no checkpoint '7' yet",
        model=str(made.run("bert")),
        checkpoint="7",
    )


def test_a_model_that_is_no_run_is_one_sentence(made, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    for folder, sentence in {
        tmp_path / "empty": "is no run directory .* no export, and has no weights",
        tmp_path / "nowhere": "there is no file or folder .*nowhere; give one that",
        made.export("bert", "hf", False) / "text": "BERT, one tower of which cannot",
    }.items():
        refused(sentence, model=str(folder))


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_missing_package_is_one_sentence(package, made, refused, monkeypatch):
    util = export.importlib.util
    find = util.find_spec

    def without(name, *more):
        return None if name == package else find(name, *more)

    monkeypatch.setattr(util, "find_spec", without)
    sentence = f"{package} is not installed; install it with pip install"
    refused(sentence, model=str(made.run("bert")))


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def drop(*path):
    def change(file):
        content = json.loads(file.read_text())
        functools.reduce(dict.__getitem__, path[:-1], content).pop(path[-1])
        file.write_text(json.dumps(content))

    return change


FIELDS = ("model", "pixels", "lengths", "pixels/mean", "pixels/fit", "model/dtype")
FIELDS += ("model/image", "model/image/width", "model/text/kind", "model/embedding")
CUT = ("model.safetensors", "tokenizer.json", "config.json")


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, cut) for name in CUT),
        ("config.json", drop("format")),
        *(
            pytest.param("config.json", drop(*path.split("/")), id=path)
            for path in FIELDS
        ),
    ],
)
def test_a_damaged_export_is_one_sentence(name, damage, made, tmp_path):
    folder = tmp_path / "export"
    shutil.copytree(made.export("bert", "unipt", False), folder)
    damage(folder / name)
    with pytest.raises(UserError, match=str(folder)) as caught:
        unipt_jax.load(folder)
    assert "\n" not in str(caught.value)


def test_evaluate_prints_the_same_figures_for_an_export(
    made, persons, tmp_path, capsys
):
    tables, results = [], []
    for name in (made.run("bert"), made.export("bert", "unipt", False)):
        job = evaluate_config.get_config()
        job.update(model=str(name), batch_size=16, examples=2)
        job.data.update(records=str(persons), threads=2)
        evaluate.run(job, str(tmp_path / name.name))
        printed = capsys.readouterr().out.splitlines()
        at = next(i for i, line in enumerate(printed) if "Rank-1" in line)
        tables.append(printed[at : at + 2])
        file = tmp_path / name.name / "evaluation.json"
        results.append(json.loads(file.read_text())["set/test"])
    assert tables[0] == tables[1]
    own = ("system", "model", "selected_on")  # the export does not know the last
    models = [[row.pop(name) for name in own] for row in results]
    assert results[0] == results[1] and models[0] != models[1]
