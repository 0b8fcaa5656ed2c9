"""Sentences in, token ids out: WordPiece or CLIP's byte pairs, by folder or name.

A tokenizer folder holds `tokenizer.json`; or BERT's `vocab.txt`; or, of CLIP,
`vocab.json` and `merges.txt` as Hugging Face has them, or the one file of OpenAI and
open_clip. WordPiece vocabularies can be trained here.
"""

import collections
import dataclasses
import gzip
import itertools
import json
import os
import pathlib
import shutil
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers as hf

from unipt_jax.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MERGES = "bpe_simple_vocab_16e6.txt.gz"  # OpenAI's: holds more merges than CLIP uses
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
FILES += ("merges.txt", MERGES)
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", MERGES)  # any will do
CLIP_MERGES = 49152 - 256 - 2
END = "</w>"  # ends the last piece of a word in CLIP's vocabulary
# How CLIP cuts a text into words, before it looks at pairs.
CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of tokenizer: how its special tokens and its pieces are written.

    required: the tokens without which it is refused. continues: what a piece that
    goes on with a word begins with, "" where pieces do not say so. ends: transformers'
    names for cls and sep. reader: the class that opens it in transformers.
    """

    kind: str
    pad: str
    unk: str
    cls: str
    sep: str
    mask: str
    required: tuple[str, ...]
    continues: str
    ends: tuple[str, str]
    reader: str

    def names(self) -> dict[str, str]:
        """The special tokens under transformers' names for them."""
        first, last = self.ends
        names = {"pad_token": self.pad, "unk_token": self.unk}
        return names | {first: self.cls, last: self.sep, "mask_token": self.mask}


WORDPIECE = Family(
    "wordpiece",
    *SPECIAL,
    required=SPECIAL,
    continues="##",
    ends=("cls_token", "sep_token"),
    reader="BertTokenizerFast",
)
CLIP = Family(
    "clip",
    pad="<|endoftext|>",
    unk="<|endoftext|>",
    cls="<|startoftext|>",
    sep="<|endoftext|>",
    mask="<|mask|>",
    required=("<|startoftext|>", "<|endoftext|>"),
    continues="",
    ends=("bos_token", "eos_token"),
    reader="CLIPTokenizer",
)


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes texts as cls, pieces, sep; knows the ids of its special tokens.

    folder: where its files lie. backend: the `tokenizers` library's object.
    """

    folder: str
    backend: hf.Tokenizer
    family: Family

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    @property
    def kind(self) -> str:
        """The name of its family: "wordpiece" or "clip"."""
        return self.family.kind

    @property
    def pad(self) -> int:
        return self.backend.token_to_id(self.family.pad)

    @property
    def cls(self) -> int:
        return self.backend.token_to_id(self.family.cls)

    @property
    def sep(self) -> int:
        return self.backend.token_to_id(self.family.sep)

    @property
    def mask(self) -> int | None:
        """None where the vocabulary has none, as CLIP's own: see `with_mask`."""
        return self.backend.token_to_id(self.family.mask)

    def with_mask(self) -> "Tokenizer":
        """This tokenizer, with a mask token added as its last id if it had none."""
        if self.mask is not None:
            return self
        backend = hf.Tokenizer.from_str(self.backend.to_str())
        backend.add_special_tokens([self.family.mask])
        return dataclasses.replace(self, backend=backend)

    def continuation(self) -> np.ndarray:
        """(V,) True for the pieces that continue a word ("##ing").

        Raises UserError for CLIP, whose pieces say where a word ends instead.
        """
        if not self.family.continues:
            raise UserError(
                f"the tokenizer in {self.folder} is CLIP's, and masking whole words "
                "needs a WordPiece vocabulary; set mlm.whole_words=False"
            )
        flags = np.zeros(len(self), bool)
        for piece, i in self.backend.get_vocab().items():
            flags[i] = piece.startswith(self.family.continues)
        return flags

    def encode(self, texts: Sequence[str], limit: int) -> tuple[list[np.ndarray], int]:
        """Ids of each text, at most `limit` long, and how many texts were cut.

        A text that is cut keeps its sep.
        """
        ids, cut = [], 0
        for encoding in self.backend.encode_batch_fast(list(texts)):
            row = np.array(encoding.ids, np.int32)
            if len(row) > limit:
                row, cut = np.append(row[: limit - 1], row[-1]), cut + 1
            ids.append(row)
        return ids, cut

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder that `load` and transformers' AutoTokenizer open.

        A new folder appears when all its files are written; to one that is there the
        files are added, and the one that `load` reads comes last.
        """
        folder = pathlib.Path(os.path.abspath(folder))
        new = not folder.exists()
        place = folder.parent if new else folder
        partial = place / f"{folder.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = self._files()
        for name, text in files.items():
            (partial / name).write_bytes(text.encode("utf-8"))
        if new:
            partial.rename(folder)
            return
        for name in files:
            (partial / name).replace(folder / name)
        partial.rmdir()

    def _files(self) -> dict[str, str]:
        """What `save` writes: text by file name, tokenizer.json last."""
        vocabulary = self.backend.get_vocab()
        tokens = sorted(vocabulary, key=vocabulary.get)
        stored = self.backend.to_str(pretty=True)
        names = {n: t for n, t in self.family.names().items() if t in vocabulary}
        config: dict[str, object] = {"tokenizer_class": self.family.reader}
        if self.family is CLIP:
            merges = json.loads(stored)["model"]["merges"]
            numbers = {token: vocabulary[token] for token in tokens}
            pairs = "".join(f"{left} {right}\n" for left, right in merges)
            files = {
                "vocab.json": json.dumps(numbers, ensure_ascii=False),
                "merges.txt": f"#version: 0.2\n{pairs}",
            }
        else:
            lower = getattr(self.backend.normalizer, "lowercase", True)
            config["do_lower_case"] = lower
            files = {"vocab.txt": "".join(f"{token}\n" for token in tokens)}
        files["tokenizer_config.json"] = json.dumps(config | names, indent=2)
        return files | {"tokenizer.json": stored}


def _finish(backend: hf.Tokenizer, family: Family, tokens: dict[str, int]) -> None:
    """Makes tokens special, and puts cls and sep round every text."""
    special = {token for token in family.names().values() if token in tokens}
    backend.add_special_tokens(sorted(special, key=tokens.__getitem__))
    backend.post_processor = hf.processors.TemplateProcessing(
        single=f"{family.cls} $A {family.sep}",
        special_tokens=[(t, tokens[t]) for t in (family.cls, family.sep)],
    )


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> hf.Tokenizer:
    model = hf.models.WordPiece(vocabulary, unk_token=WORDPIECE.unk)
    backend = hf.Tokenizer(model)
    backend.normalizer = hf.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    backend.decoder = hf.decoders.WordPiece()
    _finish(backend, WORDPIECE, vocabulary)
    return backend


def _clip(vocabulary: dict[str, int], merges: list[tuple[str, str]]) -> hf.Tokenizer:
    """As transformers has it: unlike OpenAI's code, it mends no HTML or mojibake."""
    clean, cut, join = hf.normalizers, hf.pre_tokenizers, hf.decoders
    model = hf.models.BPE(
        vocabulary, merges, unk_token=CLIP.unk, end_of_word_suffix=END
    )
    backend = hf.Tokenizer(model)
    spaces = clean.Replace(hf.Regex(r"\s+"), " ")
    backend.normalizer = clean.Sequence([clean.NFC(), spaces, clean.Lowercase()])
    words = cut.Split(hf.Regex(CLIP_WORDS), "removed", invert=True)
    letters = cut.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = cut.Sequence([words, letters])
    ends = [join.Replace(END, " "), join.Strip(" ", 0, 1)]
    backend.decoder = join.Sequence([join.ByteLevel(), *ends])
    _finish(backend, CLIP, vocabulary)
    return backend


def load(name: str | os.PathLike) -> Tokenizer:
    """Opens a folder, or a Hugging Face hub id such as "bert-base-uncased".

    Raises UserError where neither gives a WordPiece vocabulary with BERT's five
    special tokens, or CLIP's with its two, or where a file cannot be read.
    """
    folder = pathlib.Path(name)
    if not folder.is_dir():
        folder = _fetch(str(name))
    for file, opener in (
        ("tokenizer.json", _open_stored),
        ("vocab.txt", _open_words),
        ("vocab.json", _open_vocabulary),
        (MERGES, _open_merges),
    ):
        if (folder / file).is_file():
            backend = opener(folder / file)
            return Tokenizer(str(folder), backend, _family(backend))
    raise UserError(
        f"no tokenizer in {folder}: it needs tokenizer.json or vocab.txt, or for CLIP "
        f"vocab.json with merges.txt, or {MERGES}; for bert-base-uncased, put that "
        "model's vocab.txt there"
    )


def _family(backend: hf.Tokenizer) -> Family:
    return CLIP if isinstance(backend.model, hf.models.BPE) else WORDPIECE


def _read(file: pathlib.Path) -> str:
    """A file's text, unpacked where it is a .gz."""
    try:
        if file.suffix == ".gz":
            with gzip.open(file, "rt", encoding="utf-8") as stream:
                return stream.read()
        return file.read_text(encoding="utf-8")
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it again") from error


def _read_object(file: pathlib.Path) -> dict:
    try:
        value = json.loads(_read(file))
    except json.JSONDecodeError as error:
        raise UserError(f"{file} cannot be read ({error}); fetch it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{file} holds no JSON object; fetch it again")
    return value


def _check(file: pathlib.Path, vocabulary: dict, family: Family) -> None:
    """Raises UserError for a lost special token, or ids that are not 0 to V - 1."""
    missing = [token for token in family.required if token not in vocabulary]
    if missing:
        raise UserError(
            f"{file} lacks {', '.join(missing)}; give a BERT's or a CLIP's tokenizer"
        )
    ids = vocabulary.values()
    if any(type(i) is not int for i in ids) or sorted(ids) != list(range(len(ids))):
        raise UserError(
            f"{file} does not number its {len(ids)} different tokens from 0 without "
            "gaps; fetch it again"
        )


def _open_stored(file: pathlib.Path) -> hf.Tokenizer:
    """From tokenizer.json, without the padding and truncation that it may ask for."""
    try:
        backend = hf.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{file} cannot be read ({error}); fetch it again") from error
    backend.no_padding()
    backend.no_truncation()
    vocabulary, family = backend.get_vocab(), _family(backend)
    _check(file, vocabulary, family)
    if backend.encode("").ids != [vocabulary[t] for t in (family.cls, family.sep)]:
        raise UserError(
            f"{file} does not put {family.cls} and {family.sep} round a text; fetch it "
            "again, or put the model's other vocabulary files in its place"
        )
    return backend


def _open_words(file: pathlib.Path) -> hf.Tokenizer:
    """From BERT's vocab.txt, and tokenizer_config.json for the case if it is there."""
    # Not splitlines: it also splits at U+2028 and others, which are tokens here.
    words = _read(file).removesuffix("\n").split("\n")
    vocabulary = {word: i for i, word in enumerate(words)}
    _check(file, vocabulary, WORDPIECE)
    config = file.with_name("tokenizer_config.json")
    settings = _read_object(config) if config.is_file() else {}
    return _wordpiece(vocabulary, bool(settings.get("do_lower_case", True)))


def _open_vocabulary(file: pathlib.Path) -> hf.Tokenizer:
    """From Hugging Face's vocab.json, with the merges.txt beside it."""
    merges = file.with_name("merges.txt")
    if not merges.is_file():
        raise UserError(f"{file} needs merges.txt beside it; put that model's there")
    vocabulary = _read_object(file)
    _check(file, vocabulary, CLIP)
    pairs = _pairs(merges)
    for left, right in pairs:
        missing = [p for p in (left, right, left + right) if p not in vocabulary]
        if missing:
            raise UserError(
                f"{merges} joins '{left} {right}', but {file} lacks '{missing[0]}'; "
                "fetch both from one model again"
            )
    return _clip(vocabulary, pairs)


def _open_merges(file: pathlib.Path) -> hf.Tokenizer:
    """From OpenAI's merges: bytes, bytes that end a word, the merges, start and end."""
    pairs = _pairs(file)[:CLIP_MERGES]
    letters = sorted(hf.pre_tokenizers.ByteLevel.alphabet())
    tokens = dict.fromkeys([*letters, *(letter + END for letter in letters)])
    for left, right in pairs:
        if not {left, right} <= tokens.keys() or left + right in tokens:
            raise UserError(
                f"{file} joins '{left} {right}', which is not two known pieces to one "
                "new piece; fetch it again"
            )
        tokens[left + right] = None
    vocabulary = {token: i for i, token in enumerate([*tokens, CLIP.cls, CLIP.sep])}
    return _clip(vocabulary, pairs)


def _pairs(file: pathlib.Path) -> list[tuple[str, str]]:
    """The pairs of pieces that a file of merges joins, the earliest first."""
    lines = _read(file).split("\n")
    if "#version" in lines[0]:
        lines[0] = ""
    pairs = [tuple(line.split()) for line in lines if line.strip()]
    if not pairs:
        raise UserError(f"{file} holds no merges; fetch it again")
    odd = next((pair for pair in pairs if len(pair) != 2), None)
    if odd is not None:
        raise UserError(
            f"{file} has the line {' '.join(odd)[:40]!r}, which is not two pieces to "
            "join; fetch it again"
        )
    return pairs


def _fetch(name: str) -> pathlib.Path:
    """The folder in the local cache that holds the hub's tokenizer files."""
    import huggingface_hub

    try:
        return pathlib.Path(
            huggingface_hub.snapshot_download(name, allow_patterns=list(FILES))
        )
    except Exception as error:  # offline, not found, no such name: all end the same
        raise UserError(
            f"tokenizer '{name}' is neither a folder nor to be had from the Hugging "
            f"Face hub ({type(error).__name__}); give a folder that holds its "
            "tokenizer.json, its vocab.txt (BERT), its vocab.json and merges.txt or "
            f"{MERGES} (CLIP), with --config.tokenizer=FOLDER"
        ) from error


def train(texts: Iterable[str], *, size: int) -> Tokenizer:
    """A lower-case WordPiece vocabulary of at most `size` tokens, from texts.

    The same texts give the same vocabulary, in any process.
    """
    words = {token: i for i, token in enumerate([*SPECIAL, *_pieces(texts, size)])}
    return Tokenizer("", _wordpiece(words, lowercase=True), WORDPIECE)


def _pieces(texts: Iterable[str], size: int) -> list[str]:
    """Letters, and the commonest pairs of neighbouring pieces joined, again and again.

    So does the library's own trainer, but that one breaks ties by chance, this one by
    the alphabet.
    """
    normalise = hf.normalizers.BertNormalizer(lowercase=True).normalize_str
    split = hf.pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    counts = collections.Counter(
        word for text in texts for word, _ in split(normalise(text))
    )
    words = {w: [w[0], *(f"##{letter}" for letter in w[1:])] for w in counts}
    pieces = {piece for spelt in words.values() for piece in spelt}
    if len(pieces) + len(SPECIAL) > size:
        raise UserError(
            f"a vocabulary of {size} tokens is too small: special tokens and the "
            f"letters of these texts are {len(pieces) + len(SPECIAL)}; ask for more"
        )
    while len(pieces) < size - len(SPECIAL):
        pairs: collections.Counter = collections.Counter()
        for word, spelt in words.items():
            for pair in itertools.pairwise(spelt):
                pairs[pair] += counts[word]
        if not pairs:
            break
        left, right = best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merged = left + right.removeprefix("##")
        pieces.add(merged)
        for spelt in words.values():
            for at in range(len(spelt) - 2, -1, -1):
                if tuple(spelt[at : at + 2]) == best:
                    spelt[at : at + 2] = [merged]
    return sorted(pieces)
