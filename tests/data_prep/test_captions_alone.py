"""Captions alone, beside images that are prepared already: aligned, checked, trainable."""

import itertools
import json

import numpy as np
import pretrain_trees as trees
import pytest

from data_prep import build, captions
from unipt_jax.data import pipeline, records, tokenizers
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError

COUNT = 9


@pytest.fixture
def run(tmp_path, capsys):
    """Runs the command; gives the exit code, what was said, and the error."""

    def command(*words):
        code = build.main(list(map(str, words)))
        said, errors = capsys.readouterr()
        assert "Traceback" not in errors
        lines = [line for line in errors.splitlines() if line.startswith("error: ")]
        assert len(lines) == code
        return code, said, lines[0] if lines else ""

    return command


def paths(below: str = "") -> list[str]:
    return [f"{below}cam_{n % 2}/{n}.jpg" for n in range(COUNT)]


@pytest.fixture
def prepared(tmp_path, run):
    """Images prepared from a tree in which they lie below a folder."""

    def make(below: str = ""):
        files = {path: trees.picture(n) for n, path in enumerate(paths(below))}
        trees.loose(tmp_path / "raw", files)
        out = tmp_path / "images"
        assert run("luperson", "--raw", tmp_path / "raw", "--out", out)[0] == 0
        return out

    return make


@pytest.fixture
def caption(tmp_path, run):
    """Writes captions of these paths as LUPerson-MLLM, and the caption records."""

    def make(images, said, *words):
        text = json.dumps({path: trees.sentence(n) for n, path in said})
        trees.loose(tmp_path / "said", {"qwen.json": text.encode()})
        out = ["--out", tmp_path / "captions", "--records", images]
        return run("luperson_mllm", "--raw", tmp_path / "said", *out, *words)

    return make


def read(folder) -> list[CaptionRecord]:
    return list(Records(folder, "pretrain", CaptionRecord))


@pytest.mark.parametrize(
    ("images_below", "captions_below"),
    [("", ""), ("part1/x/", ""), ("", "LUPerson/images/"), ("x/", "x/")],
)
def test_captions_stand_at_the_index_of_their_image_whatever_either_begins_with(
    tmp_path, prepared, caption, images_below, captions_below
):
    images = prepared(images_below)
    said = list(enumerate(paths(captions_below)))
    code, text, _ = caption(images, reversed(said))
    assert code == 0
    assert f"9 of 9 images of {images} have captions; 0 captioned images are" in text
    made = read(tmp_path / "captions")
    source = Records(images, "pretrain", PersonRecord)
    number = {path: n for n, path in enumerate(paths(images_below))}
    assert [record.image_id for record in made] == [r.image_id for r in source]
    for record in made:
        n = number[record.image_id]
        assert record.captions == (trees.sentence(n),)
        assert record.evidence == {"file_path": paths(captions_below)[n]}


def test_an_image_without_captions_has_none_and_captions_without_image_are_counted(
    tmp_path, prepared, caption
):
    images = prepared()
    said = [(n, path) for n, path in enumerate(paths()) if n != 4] + [(99, "z/99.jpg")]
    code, text, _ = caption(images, said)
    assert code == 0
    assert "8 of 9 images" in text and "1 captioned images are not in it" in text
    counts = {r.image_id: len(r.captions) for r in read(tmp_path / "captions")}
    assert counts == dict.fromkeys(paths(), 1) | {"cam_0/4.jpg": 0}
    made = records.metadata(tmp_path / "captions")
    assert made["captioned"] == 8
    assert (made["set"], made["records"]) == ("luperson_mllm", str(images))


def test_captions_of_other_images_are_refused_with_an_example_of_each(
    tmp_path, prepared, caption
):
    code, _, error = caption(prepared(), [(1, "other/a.jpg")])
    assert code == 1
    assert "it has 'cam_0/0.jpg', they have 'other/a.jpg'" in error
    assert not (tmp_path / "captions").exists()


def test_a_set_without_captions_is_refused(tmp_path, prepared, run):
    images = prepared()
    words = ["--out", tmp_path / "captions", "--records", images]
    code, _, error = run("luperson", "--raw", tmp_path / "raw", *words)
    assert code == 1
    assert "luperson in" in error and "has no captions" in error
    assert not (tmp_path / "captions").exists()


def test_what_is_there_is_never_overwritten_and_resumed_only_by_its_own_command(
    tmp_path, prepared, caption
):
    images, said = prepared(), list(enumerate(paths()))
    assert caption(images, said)[0] == 0
    code, _, error = caption(images, said)
    assert code == 1 and "exists already; remove it" in error
    code, text, _ = caption(images, said, "--resume")
    assert code == 0 and "is there already, as asked for: {'pretrain': 9}" in text
    code, _, error = caption(f"{images}/", said, "--resume")
    assert code == 1 and "holds another set, made by `python -m" in error


def test_no_images_and_images_of_another_split_are_told(tmp_path, caption):
    code, _, error = caption(tmp_path / "none", [(0, "a.jpg")])
    assert code == 1 and f"no record set at {tmp_path}/none" in error
    person = [PersonRecord(trees.picture(0), "a.jpg")]
    records.write_set(tmp_path / "set", PersonRecord, {"test": person}, metadata={})
    code, _, error = caption(tmp_path / "set", [(0, "a.jpg")])
    assert code == 1 and "has no images to pre-train on, only {'test': 1}" in error


def test_training_takes_the_images_with_these_captions(tmp_path, prepared, caption):
    images = prepared("part1.tar_/")
    said = [(n, path) for n, path in enumerate(paths()) if n != 4]
    assert caption(images, said)[0] == 0
    texts = [trees.sentence(n) for n in range(COUNT)]
    words = {word for text in texts for word in text.lower().split()}
    vocabulary = [*tokenizers.SPECIAL, *sorted(words), *map(str, range(COUNT)), ","]
    (tmp_path / "vocab.txt").write_text("\n".join(dict.fromkeys(vocabulary)) + "\n")
    tokenizer = tokenizers.load(tmp_path)
    batches = pipeline.TrainBatches(
        Records(images, "pretrain", PersonRecord),
        Records(tmp_path / "captions", "pretrain", CaptionRecord),
        tokenizer,
        batch_size=4,
        rows=np.arange(4),
        size=(32, 16),
        lengths=(32,),
        seed=1,
        progress=False,
    )
    assert (len(batches), batches.without_caption) == (8, 1)
    encoded, _ = tokenizer.encode(texts, 32)
    of_tokens = {tuple(ids): n for n, ids in enumerate(encoded)}
    pictures = {pipeline.images.decode(trees.picture(n), 32, 16).tobytes(): n
                for n in range(COUNT)}  # fmt: skip
    seen = []
    for batch in itertools.islice(batches.from_step(0, threads=1, buffer=1), 2):
        for image, ids in zip(batch["image"], batch["tokens"], strict=True):
            number = pictures[image.tobytes()]
            assert of_tokens[tuple(ids[ids != tokenizer.pad])] == number
            seen.append(number)
    assert sorted(seen) == [n for n in range(COUNT) if n != 4]


def test_captions_for_other_records_are_refused_by_training(
    tmp_path, prepared, caption
):
    """The image ids that stand with the captions are checked, not the count alone."""
    images = prepared()
    assert caption(images, list(enumerate(paths())))[0] == 0
    made = Records(tmp_path / "captions", "pretrain", CaptionRecord)
    source = Records(images, "pretrain", PersonRecord)
    moved = [source[(n + 1) % COUNT] for n in range(COUNT)]
    splits = {"pretrain": moved}
    records.write_set(tmp_path / "moved", PersonRecord, splits, metadata={})
    (tmp_path / "vocab.txt").write_text("\n".join([*tokenizers.SPECIAL, "a"]) + "\n")
    batches = pipeline.TrainBatches(
        Records(tmp_path / "moved", "pretrain", PersonRecord),
        made,
        tokenizers.load(tmp_path),
        batch_size=4,
        rows=np.arange(4),
        size=(32, 16),
        lengths=(64,),
        seed=1,
        progress=False,
    )
    with pytest.raises(UserError):
        next(batches.from_step(0, threads=0, buffer=1))


# --- which path is which image -------------------------------------------------------


@pytest.mark.parametrize(
    ("image_ids", "names", "wanted"),
    [
        (["a/1", "b/1"], ["b/1", "a/1"], [1, 0]),
        (["x/a/1", "x/b/1"], ["b/1", "a/1"], [1, 0]),
        (["a/1", "b/1"], ["x/y/b/1", "x/y/a/1"], [1, 0]),
        (["a/1", "b/1", "2"], ["1", "2"], [None, None, 1]),  # either may be 1
        (["1", "2"], ["a/1", "b/1", "a/2"], [None, 2]),
        (["a/1"], ["a/11", "ba/1"], [None]),
        (["a/1", "a/2"], ["a/2"], [None, 0]),
        (["a/1"], [], [None]),
        ([], ["a/1"], []),
    ],
)
def test_paths_match_by_their_ends_and_what_is_ambiguous_matches_nothing(
    image_ids, names, wanted
):
    assert captions.match(image_ids, names) == wanted
