"""Sentences in, token ids out: WordPiece by folder or name, trained or found.

A tokenizer folder holds `tokenizer.json`, or BERT's `vocab.txt`.
"""

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers as hf

from unipt_jax.errors import UserError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Encodes texts as [CLS] words [SEP]; knows its special ids.

    folder: where its files lie. backend: the `tokenizers` library's object.
    """

    folder: str
    backend: hf.Tokenizer

    def __len__(self) -> int:
        return self.backend.get_vocab_size()

    def _id(self, token: str) -> int:
        return self.backend.token_to_id(token)

    @property
    def pad(self) -> int:
        return self._id("[PAD]")

    @property
    def cls(self) -> int:
        return self._id("[CLS]")

    @property
    def sep(self) -> int:
        return self._id("[SEP]")

    @property
    def mask(self) -> int:
        return self._id("[MASK]")

    def continuation(self) -> np.ndarray:
        """(V,) True for the pieces that continue a word ("##ing")."""
        vocabulary = self.backend.get_vocab()
        flags = np.zeros(len(self), bool)
        flags[[i for t, i in vocabulary.items() if t.startswith("##")]] = True
        return flags

    def encode(self, texts: Sequence[str], limit: int) -> tuple[list[np.ndarray], int]:
        """Ids of each text, at most `limit` long, and how many texts were cut.

        A text that is cut keeps its [SEP].
        """
        ids, cut = [], 0
        for encoding in self.backend.encode_batch_fast(list(texts)):
            row = np.array(encoding.ids, np.int32)
            if len(row) > limit:
                row, cut = np.append(row[: limit - 1], row[-1]), cut + 1
            ids.append(row)
        return ids, cut

    def save(self, folder: str | os.PathLike) -> None:
        """Writes a folder that `load` and transformers' AutoTokenizer open."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        vocabulary = sorted(self.backend.get_vocab().items(), key=lambda item: item[1])
        words = "".join(f"{token}\n" for token, _ in vocabulary)
        (folder / "vocab.txt").write_text(words, encoding="utf-8")
        self.backend.save(str(folder / "tokenizer.json"))
        names = {f"{t[1:-1].lower()}_token": t for t in SPECIAL}
        config = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": True} | names
        text = json.dumps(config, indent=2)
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def _wordpiece(vocabulary: dict[str, int], lowercase: bool) -> hf.Tokenizer:
    backend = hf.Tokenizer(hf.models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = hf.normalizers.BertNormalizer(lowercase=lowercase)
    backend.pre_tokenizer = hf.pre_tokenizers.BertPreTokenizer()
    backend.decoder = hf.decoders.WordPiece()
    backend.add_special_tokens(list(SPECIAL))
    ends = [(t, vocabulary[t]) for t in ("[CLS]", "[SEP]")]
    backend.post_processor = hf.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return backend


def load(name: str | os.PathLike) -> Tokenizer:
    """Opens a folder, or a Hugging Face hub id such as "bert-base-uncased".

    Raises UserError where neither gives a WordPiece vocabulary with BERT's five
    special tokens.
    """
    folder = pathlib.Path(name)
    if not folder.is_dir():
        folder = _fetch(str(name))
    if (folder / "tokenizer.json").is_file():
        try:
            backend = hf.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise UserError(
                f"{folder}/tokenizer.json cannot be read ({error}); fetch it again"
            ) from error
        backend.no_padding()
        backend.no_truncation()
    elif (folder / "vocab.txt").is_file():
        text = (folder / "vocab.txt").read_text(encoding="utf-8")
        # Not splitlines: it also splits at U+2028 and others, which are tokens here.
        words = text.removesuffix("\n").split("\n")
        missing = [token for token in SPECIAL if token not in words]
        if missing:
            raise UserError(f"{folder}/vocab.txt lacks {', '.join(missing)}")
        backend = _wordpiece({w: i for i, w in enumerate(words)}, _lowercase(folder))
    else:
        raise UserError(
            f"no tokenizer in {folder}: it needs {FILES[0]} or {FILES[1]}; for "
            "bert-base-uncased, put that model's vocab.txt there"
        )
    missing = [token for token in SPECIAL if backend.token_to_id(token) is None]
    if missing:
        raise UserError(f"the tokenizer in {folder} lacks {', '.join(missing)}")
    return Tokenizer(str(folder), backend)


def _lowercase(folder: pathlib.Path) -> bool:
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return True
    try:
        return bool(json.loads(file.read_text("utf-8")).get("do_lower_case", True))
    except (ValueError, AttributeError) as error:  # no JSON, or no object
        raise UserError(f"{file} cannot be read ({error}); fetch it again") from error


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
            "vocab.txt with --config.tokenizer=FOLDER"
        ) from error


def train(texts: Iterable[str], *, size: int) -> Tokenizer:
    """A lower-case WordPiece vocabulary of at most `size` tokens, from texts.

    The same texts give the same vocabulary, in any process.
    """
    words = {token: i for i, token in enumerate([*SPECIAL, *_pieces(texts, size)])}
    return Tokenizer("", _wordpiece(words, lowercase=True))


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
