"""Which words mattered: a sentence in, what leaving each of its words out does out."""

import dataclasses
import unicodedata

import numpy as np

from unipt_jax.data.tokenizers import Tokenizer
from unipt_jax.search.scan import plain

NAMED = 8  # unknown words that a note names
FLAT = 0.01  # where no word changes the scores by more, all are tinted faintly
RAISES, LOWERS = "59, 130, 246", "249, 115, 22"  # blue and orange
LEGEND = (
    "Words: how much lower the mean score of the crops shown is when the word is left "
    "out. It tells what the model does, not why; words that say the same hide each other."
)
TINTS = "Blue words raise the score, orange ones lower it."


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A sentence as a model reads it.

    words: what stands between white space, punctuation with its word. read: how many of
    them, from the first, are wholly within the limit. tokens: of the whole sentence,
    with the two that begin and end it; as many as `limit` are read. unknown: what of
    the words no token stands for, signs aside, each once.
    """

    words: tuple[str, ...]
    read: int
    tokens: int
    limit: int
    unknown: tuple[str, ...]

    @property
    def empty(self) -> bool:
        """Whether nothing of it is read."""
        return self.tokens <= 2

    def variants(self) -> list[str]:
        """The words that are read, then the same without the first, the second, ..."""
        read = self.words[: self.read]
        without = [read[:i] + read[i + 1 :] for i in range(len(read))]
        return [" ".join(words) for words in (read, *without)]


def parse(text: str, tokenizer: Tokenizer, limit: int) -> Sentence:
    """A sentence's words, and which of them a model reads whose limit is `limit` tokens.

    No tokenizer here joins what white space parts, so that words have tokens of their
    own each.
    """
    words = tuple(text.split())
    own = tokenizer.backend.encode_batch(list(words))
    ends = 2 + np.cumsum([0, *(len(row.ids) - 2 for row in own)])
    missing = tokenizer.backend.token_to_id(tokenizer.family.unk)
    # A sign alone is no loss, a symbol is: an emoji says something.
    unknown = [
        word[slice(*place)]
        for word, row in zip(words, own, strict=True)
        for i, place in zip(row.ids[1:-1], row.offsets[1:-1], strict=True)
        if i == missing and any(map(_says_something, word[slice(*place)]))
    ]
    return Sentence(
        words=words,
        read=int((ends[1:] <= limit).sum()),
        tokens=int(ends[-1]),
        limit=limit,
        unknown=tuple(dict.fromkeys(unknown)),
    )


def _says_something(letter: str) -> bool:
    return letter.isalnum() or unicodedata.category(letter) == "So"


def notes(sentence: Sentence) -> list[str]:
    """What a person should know of how a sentence is read; nothing where all is well."""
    said = []
    if sentence.tokens > sentence.limit:
        rest = len(sentence.words) - sentence.read
        said.append(
            f"cut: it has {sentence.tokens} tokens and the model reads {sentence.limit}, "
            f"so its last {'word counts' if rest == 1 else f'{rest} words count'} for "
            "little or nothing"
        )
    if sentence.unknown:
        named = ", ".join(sentence.unknown[:NAMED])
        more = len(sentence.unknown) - NAMED
        said.append(
            f"the model does not know: {named}" + (f" and {more} more" * (more > 0))
        )
    return said


@dataclasses.dataclass(frozen=True)
class Words:
    """How a score changes when a word is left out of the sentence.

    words: (W) as they stand in the sentence. effect: (W, k) float32, the score of the
    sentence with crop i less its score without word w: above 0 where the word raises
    it. Words beyond the model's limit have 0.

    This is what the model's score does, no cause: a sentence without a word may be one
    of a kind that the model never saw, and of words that say the same ("red" in "a red,
    crimson coat") each hides the other, so that both seem to matter little.
    """

    words: tuple[str, ...]
    effect: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """(W,) the mean effect on the crops; 0 where there are none."""
        return (
            self.effect.mean(axis=1) if self.effect.size else np.zeros(len(self.words))
        )


def effects(sentence: Sentence, texts: np.ndarray, crops: np.ndarray) -> Words:
    """What leaving words out does to the scores of some crops.

    texts: (1 + R, P) embeddings of `sentence.variants()`. crops: (k, P) embeddings.
    """
    scores = texts @ crops.T  # (1 + R, k)
    effect = np.zeros((len(sentence.words), len(crops)), np.float32)
    effect[: sentence.read] = scores[0] - scores[1:]
    return Words(sentence.words, effect)


@dataclasses.dataclass(frozen=True)
class Tinted:
    """A word as a page shows it. text, effect: as people read them. colour: CSS."""

    text: str
    effect: str
    colour: str


def tinted(words: Words) -> list[Tinted]:
    """Words with their mean effects, blue where one raises the scores, orange where not.

    The strongest word of a sentence has the strongest tint, unless all are below `FLAT`.
    """
    strongest = max(float(np.abs(words.mean).max(initial=0)), FLAT)
    return [
        Tinted(
            plain(text),
            signed(mean),
            f"rgba({RAISES if mean > 0 else LOWERS}, {0.6 * abs(mean) / strongest:.3f})",
        )
        for text, mean in zip(words.words, words.mean.tolist(), strict=True)
    ]


def signed(effect: float) -> str:
    """An effect as a person reads it: "+0.031"; what is nothing has no minus."""
    return f"{round(float(effect), 3) + 0.0:+.3f}"
