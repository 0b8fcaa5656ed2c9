"""CLIP folders of any maker open with the sizes, pixels and vectors they had."""

import json

import foreign
import helpers
import numpy as np
import pytest
from foreign import arrays, assert_near
from PIL import Image

import unipt_jax
from unipt_jax import clip_config, sources
from unipt_jax.errors import UserError

torch, transformers = foreign.torch, foreign.transformers
save_file = pytest.importorskip("safetensors.torch").save_file

# Heads that are not 64 wide: only a config can tell them.
IMAGE = dict(features=24, layers=2, heads=3, hidden=40)
TEXT = dict(features=16, layers=3, heads=2, hidden=36)
MEAN, STD = [0.4, 0.5, 0.6], [0.3, 0.2, 0.25]


def source(tensors, **configs):
    """An opened folder: tensors, and JSON files by their names without the ending."""
    configs = {f"{name}.json": content for name, content in configs.items()}
    return sources.Source("the folder", None, tensors, configs)


def assert_section(section, image, text, embedding=10):
    """The fields that say what the network is."""
    fixed = dict(distillation=False, pre_norm=True, patch_bias=False)
    expected = dict(image=image | fixed, text=text | dict(kind="clip"))
    for tower, fields in expected.items():
        assert {name: section[tower][name] for name in fields} == fields
        assert section[tower]["dropout"] == section[tower]["attention_dropout"] == 0
    head = dict(pool="token", projection_bias=False, temperature="learned")
    head |= dict(mlm_output="none", embedding=embedding)
    assert {name: section[name] for name in head} == head


# --- sections ------------------------------------------------------------------------


@pytest.mark.parametrize(("activation", "eps"), [("gelu", 1e-6), ("quick_gelu", 1e-5)])
def test_a_folder_of_transformers_is_described_by_its_config(activation, eps, tmp_path):
    configs = foreign.clip_configs(IMAGE, TEXT, 40, 8, 10, activation)
    for config in configs:
        config.layer_norm_eps = eps
    foreign.clip_model(*configs).save_pretrained(tmp_path)
    section = clip_config.clip_section(sources.open_source(tmp_path))
    both = dict(activation=activation, norm_eps=eps)
    grid = dict(height=40, width=40, patch=(8, 8))
    assert_section(section, IMAGE | both | grid, TEXT | both | dict(positions=16))


def test_what_a_config_of_transformers_leaves_out_has_its_default():
    sizes = dict(features=48, layers=1, hidden=40)
    image, text = sizes | dict(heads=12), sizes | dict(heads=8)
    tensors = arrays(foreign.clip_model(*foreign.clip_configs(image, text, 16, 8, 10)))
    empty = dict(vision_config={}, text_config={})
    section = clip_config.clip_section(source(tensors, config=empty))
    both = dict(activation="quick_gelu", norm_eps=1e-5)
    grid = dict(height=16, width=16, patch=(8, 8))
    assert_section(section, image | both | grid, text | both)


def open_clip_json(quick, size):
    """What open_clip keeps beside the weights."""
    vision = dict(layers=2, width=24, head_width=8, patch_size=8, image_size=size)
    text = dict(context_length=16, width=16, heads=2, layers=3)
    model = dict(embed_dim=10, vision_cfg=vision, text_cfg=text)
    model |= dict(quick_gelu=True) if quick else {}
    return dict(model_cfg=model, preprocess_cfg=dict(mean=MEAN, std=STD))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(
    ("size", "grid"), [([48, 16], (6, 2)), (32, (4, 4)), ([32, 32], (4, 4))]
)
def test_a_folder_of_open_clip_is_described_by_its_config(quick, size, grid, tmp_path):
    theirs = foreign.OpenAiClip(IMAGE, TEXT, grid, (8, 8), 10, quick)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    content = open_clip_json(quick, size)
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    opened = sources.open_source(tmp_path)
    section = clip_config.clip_section(opened)
    both = dict(activation="quick_gelu" if quick else "gelu", norm_eps=1e-5)
    image = dict(height=8 * grid[0], width=8 * grid[1], patch=(8, 8))
    assert_section(section, IMAGE | both | image, TEXT | both | dict(positions=16))
    assert clip_config.clip_pixels(opened) == dict(mean=MEAN, std=STD)


def test_bare_tensors_are_openais(tmp_path):
    image = dict(features=128, layers=1, heads=2, hidden=20)
    text = dict(features=64, layers=2, heads=1, hidden=12)
    theirs = foreign.OpenAiClip(image, text, (4, 4), (8, 4), 10)
    torch.save(theirs.state_dict(), tmp_path / "ViT.pt")
    opened = sources.open_source(tmp_path / "ViT.pt")
    section = clip_config.clip_section(opened)
    both = dict(activation="quick_gelu", norm_eps=1e-5)
    grid = dict(height=32, width=16, patch=(8, 4))
    assert_section(section, image | both | grid, text | both | dict(positions=16))
    section = clip_config.clip_section(opened, "gelu")
    assert section["image"]["activation"] == section["text"]["activation"] == "gelu"
    assert clip_config.clip_pixels(opened) == dict(
        mean=clip_config.MEAN, std=clip_config.STD
    )


def test_one_tower_alone_is_refused_by_its_layouts_name():
    vision, _ = foreign.clip_configs(IMAGE, TEXT, 32, 8, 10)
    half = arrays(transformers.CLIPVisionModel(vision))
    for tensors, said in (
        (half, "the folder is transformers CLIP, one tower of which"),
        (
            arrays(foreign.TimmVit(IMAGE, (2, 2), 8)),
            "the folder is timm ViT, one tower",
        ),
        ({"x": np.zeros(1)}, "the folder is no known layout, "),
    ):
        with pytest.raises(UserError, match=said):
            clip_config.clip_section(source(tensors))


@pytest.mark.parametrize("gone", ["positional_embedding", "visual.conv1.weight"])
def test_a_clip_that_lacks_a_tensor_is_refused(gone):
    tensors = arrays(foreign.OpenAiClip(IMAGE, TEXT, (2, 2), (8, 8), 10))
    del tensors[gone]
    with pytest.raises(UserError, match=rf"lacks {gone}; |no known layout"):
        clip_config.clip_section(source(tensors))


# --- vectors -------------------------------------------------------------------------

SENTENCES = ("red", "a person in red trousers, and so on", "Red! red, READ", "")


def pictures():
    """Sizes that shrink, grow, and are cut above and below or at the sides."""
    rng = np.random.default_rng(3)
    sizes = ((128, 64), (40, 100), (32, 32), (20, 10))
    return [
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)) for h, w in sizes
    ]


def transformers_folder(folder):
    """A whole CLIP of transformers on disk: weights, pixels, tokens; the network."""
    words = foreign.write_clip_tokenizer(folder)
    end = len(words) - 1
    ids = dict(vocab_size=len(words), pad_token_id=end, bos_token_id=end - 1)
    configs = foreign.clip_configs(IMAGE, TEXT, 32, 8, 10, eos_token_id=end, **ids)
    theirs = foreign.clip_model(*configs)
    theirs.save_pretrained(folder)
    sizes = dict(size=dict(shortest_edge=32), crop_size=dict(height=32, width=32))
    stats = dict(image_mean=MEAN, image_std=STD)
    processor = transformers.CLIPImageProcessorPil(**sizes, **stats)
    processor.save_pretrained(folder)
    return theirs, processor


def test_load_gives_the_unit_vectors_of_transformers_clip(tmp_path):
    theirs, processor = transformers_folder(tmp_path)
    opened = unipt_jax.load(tmp_path, mesh=helpers.mesh_of(1), fit="crop")
    assert opened.mean == tuple(MEAN) and opened.std == tuple(STD)
    assert opened.size == (32, 32) and opened.lengths == (16,)
    pixels = processor(pictures(), return_tensors="pt").pixel_values
    expected = foreign.run(theirs.get_image_features, pixel_values=pixels)
    expected = torch.nn.functional.normalize(expected.pooler_output)
    assert_near(opened.encode_image(pictures()), expected, 1e-6)
    tokenizer = transformers.CLIPTokenizerFast.from_pretrained(str(tmp_path))
    options = dict(padding=True, truncation=True, max_length=16, return_tensors="pt")
    expected = foreign.run(theirs.get_text_features, **tokenizer(SENTENCES, **options))
    expected = torch.nn.functional.normalize(expected.pooler_output)
    found = opened.encode_text(SENTENCES)
    assert_near(found, expected, 1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_load_gives_the_unit_vectors_of_a_tall_open_clip(tmp_path):
    words = foreign.write_clip_tokenizer(tmp_path)
    grid, patch = (6, 2), (8, 8)
    theirs = foreign.OpenAiClip(
        IMAGE, TEXT, grid, patch, 10, quick=False, words=len(words)
    )
    foreign.randomise(theirs)
    save_file(theirs.state_dict(), tmp_path / "open_clip_model.safetensors")
    content = open_clip_json(False, [48, 16])
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    opened = unipt_jax.load(tmp_path, mesh=helpers.mesh_of(1))
    assert opened.size == (48, 16)
    shown = [p.resize((16, 48), Image.Resampling.BICUBIC) for p in pictures()]
    pixels = (np.stack(shown) / 255 - MEAN) / STD
    ids, _ = opened.tokenizer.encode(SENTENCES, 16)
    tokens = np.zeros((4, 16), np.int64)  # open_clip pads with 0
    for row, found in zip(tokens, ids, strict=True):
        row[: len(found)] = found
    pixels = foreign.tensor(pixels.astype(np.float32))
    *_, seen, said, _ = foreign.run(theirs, pixels, torch.tensor(tokens))
    assert_near(opened.encode_image(pictures()), seen, 1e-6)
    assert_near(opened.encode_text(SENTENCES), said, 1e-6)
