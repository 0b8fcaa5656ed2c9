"""Decisions against numpy and transformers; the same on any number of devices."""

import captioning
import helpers
import numpy as np
import pytest
from PIL import Image

from unipt_jax import encoder as encoders
from unipt_jax import tree
from unipt_jax.captions import conquer, reading
from unipt_jax.captions.conquer import STEPS, Judge, fit_thresholds
from unipt_jax.captions.lexicon import OPTIONAL

IMAGES = 32
# Float32 against float64: of values up to 10,000 some are off by up to so much.
SLACK = 0.05


@pytest.fixture(scope="module")
def encoder(clip):
    return encoders.load(clip, mesh=helpers.mesh_of(1))


@pytest.fixture(scope="module")
def pixels():
    """(32, 48, 16, 3) uint8."""
    size = captioning.HEIGHT, captioning.WIDTH
    return np.stack([captioning.pixels(i, *size) for i in range(IMAGES)])


@pytest.fixture(scope="module")
def judge(encoder, words):
    return Judge(encoder, words, 4)


def findings(judge, pixels):
    """All images, a batch at a time."""
    size = judge.batch_size
    parts = [
        judge.finish(judge.start(p)) for p in np.split(pixels, len(pixels) // size)
    ]
    best = np.concatenate([part.best for part in parts])
    return best, np.concatenate([part.steps for part in parts])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def scale_of(encoder):
    [log_scale] = [
        x for p, x in tree.flatten(encoder.params).items() if p == "log_scale"
    ]
    return np.exp(np.minimum(np.float64(log_scale), np.log(100)))


def odds_by_numpy(encoder, words, pixels, texts=None):
    """Attribute -> (images, phrases) probabilities, absent phrases last."""
    image = encoder.encode_image([Image.fromarray(p) for p in pixels]).astype(float)
    out = {}
    for name, attribute in words.attributes.items():
        prompts = [unit(encoder.encode_text(p.prompts)) for p in attribute.phrases]
        text = unit(np.stack([p.astype(float).mean(axis=0) for p in prompts]))
        out[name] = softmax(scale_of(encoder) * image @ text.T)
    return out


def assert_decided(best, steps, odds, words):
    """What was found is what the probabilities say, as far as float32 can tell."""
    certain = 0
    for column, (name, attribute) in enumerate(words.attributes.items()):
        told = sum(bool(phrase) for phrase in attribute.phrases)
        assert all(attribute.phrases[:told]) and not any(attribute.phrases[told:])
        wanted = odds[name][:, :told] * STEPS
        np.testing.assert_allclose(
            steps[:, column], wanted.max(axis=1), rtol=0, atol=0.5 + SLACK
        )
        # Where rounding leaves no doubt, the choice and the number are exact.
        clear = (np.abs(wanted % 1 - 0.5) > SLACK).all(axis=1)
        rounded = np.round(wanted)
        np.testing.assert_array_equal(
            best[clear, column], rounded.argmax(axis=1)[clear], strict=False
        )
        np.testing.assert_array_equal(
            steps[clear, column], rounded.max(axis=1)[clear], strict=False
        )
        certain += clear.sum()
    return certain


@pytest.mark.parametrize("prompts", ["first", "all"])
def test_decisions_and_probabilities_equal_numpys(encoder, pixels, prompts):
    words = reading.read(prompts=prompts)
    best, steps = findings(Judge(encoder, words, 4), pixels)
    assert best.shape == steps.shape == (IMAGES, len(words.attributes))
    assert best.dtype == steps.dtype == np.int32
    odds = odds_by_numpy(encoder, words, pixels)
    certain = assert_decided(best, steps, odds, words)
    assert certain > 0.6 * best.size
    # the model tells the images apart, else this would say little
    assert np.median([len(np.unique(column)) for column in steps.T]) > IMAGES // 2
    assert len(np.unique(best, axis=0)) > 6


def test_a_phrase_asked_in_several_ways_is_the_mean_of_unit_vectors(encoder):
    words = reading.read(prompts="all")
    phrases = [p for a in words.attributes.values() for p in a.phrases][-40:]
    assert {len(p.prompts) for p in phrases} == {4}
    found = conquer.embed_prompts(encoder, phrases)
    each = [encoder.encode_text(p.prompts).astype(float) for p in phrases]
    expected = unit(np.stack([unit(x).mean(axis=0) for x in each]))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-6)


def test_equal_phrases_and_equal_roundings_go_to_the_first_in_the_files(
    encoder, pixels, tmp_path
):
    own = tmp_path / "own.yaml"
    own.write_text(
        "replace: [hair]\n"
        "attributes:\n  hair:\n    kind: hair\n    says: with {hair}\n    phrases:\n"
        + "".join(
            f"      {name}: {{asked: short hair, words: [{name} hair], number: mass, "
            f"is: [hair is {name}]}}\n"
            for name in ("c", "a", "d", "b")
        )
    )
    words = reading.read(own)
    column = list(words.attributes).index("hair")
    best, steps = findings(Judge(encoder, words, 4), pixels)
    assert (best[:, column] == 0).all() and (steps[:, column] == 2500).all()
    assert words.attributes["hair"].phrases[0].value == "c"
    # At a scale of almost 0 all phrases are as probable, but for the last digits.
    flat = encoders.load(encoder.name, mesh=encoder.mesh)
    flat.params["log_scale"] = np.float32(-20)
    best, steps = findings(Judge(flat, words, 4), pixels)
    counts = [len(a.phrases) for a in words.attributes.values()]
    assert (best == 0).all()
    np.testing.assert_array_equal(steps[0], np.round(STEPS / np.array(counts)))


def test_8_devices_find_what_1_finds_to_the_bit(clip, words, judge, pixels):
    eight = Judge(encoders.load(clip, mesh=helpers.mesh_of(8)), words, 4)
    assert eight.batch_size == 8 * judge.batch_size == IMAGES
    for one, other in zip(
        findings(judge, pixels), findings(eight, pixels), strict=True
    ):
        np.testing.assert_array_equal(one, other, strict=True)


def test_findings_do_not_depend_on_what_else_is_in_the_batch(judge, pixels):
    best, steps = findings(judge, pixels)
    for place in range(4):
        others = np.zeros_like(pixels)
        others[place::4] = pixels[place::4]
        alone = findings(judge, others)
        np.testing.assert_array_equal(alone[0][place::4], best[place::4])
        np.testing.assert_array_equal(alone[1][place::4], steps[place::4])


def test_a_thing_is_told_of_strictly_above_its_threshold(judge, words):
    names = list(words.attributes)
    best = [0] * len(names)
    for steps, threshold, told in ((5000, 5000, 0), (5001, 5000, 8), (5000, 4999, 8)):
        chosen = judge.chosen(
            best, [steps] * len(names), dict.fromkeys(OPTIONAL, threshold)
        )
        assert len(chosen) == len(names) - len(OPTIONAL) + told
        assert list(chosen) == [n for n in names if n in chosen]
        assert all(words.attributes[n].phrases[0] is p for n, p in chosen.items())
    numbers = [1] * len(names)
    only = dict.fromkeys(OPTIONAL, STEPS) | {"bag": 0}
    chosen = judge.chosen(numbers, [1] * len(names), only)
    assert {n for n in chosen if n in OPTIONAL} == {"bag"}
    assert chosen["bag"] is words.attributes["bag"].phrases[1]


COLUMNS = {
    "random": lambda rng, n: rng.integers(0, STEPS + 1, n),
    "ties": lambda rng, n: rng.choice([0, 17, 5000, 5001, STEPS], n),
    "low": lambda rng, n: np.full(n, 0),
    "high": lambda rng, n: np.full(n, STEPS),
    "constant": lambda rng, n: np.full(n, 4321),
}


@pytest.mark.parametrize("kind", COLUMNS)
@pytest.mark.parametrize("images", [1, 9, 200])
def test_thresholds_fit_their_targets_as_no_other_would(kind, images):
    rng = np.random.default_rng(images)
    steps = np.stack([rng.integers(0, 9, images), COLUMNS[kind](rng, images)], axis=1)
    shares = (steps[:, 1] > np.arange(STEPS + 1)[:, None]).mean(axis=1)
    for target in (0.0, 1 / 3, 0.5, 0.501, 0.97, 1.0, float(rng.random())):
        found = fit_thresholds(steps, ["other", "hat"], {"hat": target})
        distance = np.abs(shares - target)
        nearest = np.flatnonzero(distance == distance.min())
        assert found == {"hat": nearest[-1]}
        assert type(found["hat"]) is int


def test_probabilities_equal_those_of_transformers_clip(words, pixels, tmp_path):
    import foreign
    from test_clip_config import IMAGE, TEXT

    vocabulary = foreign.write_clip_tokenizer(tmp_path)
    end = len(vocabulary) - 1
    configs = foreign.clip_configs(
        *(IMAGE, TEXT, 32, 8, 10),
        vocab_size=end + 1,
        max_position_embeddings=77,
        pad_token_id=end,
        bos_token_id=end - 1,
        eos_token_id=end,
    )
    theirs = foreign.clip_model(*configs)
    theirs.logit_scale.data.fill_(np.log(60.0))
    theirs.save_pretrained(tmp_path)
    ours = encoders.load(tmp_path, mesh=helpers.mesh_of(1))
    tokenizer = foreign.transformers.CLIPTokenizerFast.from_pretrained(str(tmp_path))
    squares = np.stack([captioning.pixels(i, 32, 32) for i in range(8)])
    values = (squares / 255 - np.array(ours.mean)) / np.array(ours.std)
    values = foreign.tensor(values.astype(np.float32))
    options = dict(padding=True, truncation=True, max_length=77, return_tensors="pt")
    odds = {}
    for name, attribute in words.attributes.items():
        texts = tokenizer([p.prompts[0] for p in attribute.phrases], **options)
        logits = foreign.run(theirs, pixel_values=values, **texts).logits_per_image
        odds[name] = logits.double().softmax(dim=-1).numpy()
    best, steps = findings(Judge(ours, words, 4), squares)
    assert assert_decided(best, steps, odds, words) > 0.6 * best.size
