"""An index and the model that made it in; for sentences and pictures, crops out."""

import dataclasses
import os
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import Mesh
from PIL import Image

from unipt_jax import encoder as encoders
from unipt_jax import sharding
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError
from unipt_jax.retrieval import progress
from unipt_jax.search import index as indexes
from unipt_jax.search import words as attribution
from unipt_jax.search.gallery import Gallery
from unipt_jax.search.index import Crop, Index
from unipt_jax.search.scan import looks_like_a_photograph
from unipt_jax.search.update import differences
from unipt_jax.search.words import Words

# Sentences or pictures at once: few sizes, so that few programs are compiled. The first
# is for one query, the second for one without each of its words in turn.
SIZES = 1, 16, 64
MOST = 5_000_000  # hits of one call; each takes 250 bytes, and more where it is written


@dataclasses.dataclass(frozen=True)
class Hit:
    """A crop that was found.

    rank: from 1. score: the cosine of query and crop. number: of the crop in the index.
    photograph: whether it is shaped like a whole photograph, of which a score says
    little; see `scan.looks_like_a_photograph`.
    """

    rank: int
    score: float
    number: int
    crop: Crop
    photograph: bool


@dataclasses.dataclass(frozen=True)
class Searcher:
    """Answers queries from an index. approximate: see `Gallery.top_k`."""

    encoder: Encoder = dataclasses.field(repr=False)
    index: Index = dataclasses.field(repr=False)
    gallery: Gallery = dataclasses.field(repr=False)
    approximate: bool = False

    def by_text(self, sentences: Sequence[str], k: int = 10) -> list[list[Hit]]:
        """The k best crops of each sentence, best first; all crops where k is more.

        Raises UserError for k below 1, for a sentence of which the model reads nothing,
        and for more than `MOST` hits in all.
        """
        self._check(len(sentences), k)
        for sentence, read in zip(sentences, self._parse(sentences), strict=True):
            if read.empty:
                raise UserError(
                    f"the sentence '{sentence}' has nothing that the model reads; "
                    "describe a person in words"
                )
        rows = self._embed(sentences, self.encoder.encode_text, "sentences")
        return self._best(rows, k)

    def by_picture(
        self, pictures: Sequence[Image.Image], k: int = 10
    ) -> list[list[Hit]]:
        """The k best crops of each PIL picture, of any size and mode; see `by_text`."""
        one = isinstance(pictures, Image.Image | str)
        if one or not all(isinstance(each, Image.Image) for each in pictures):
            raise UserError("give a list of PIL pictures, as in [PIL.Image.open(FILE)]")
        self._check(len(pictures), k)
        rows = self._embed(pictures, self.encoder.encode_image, "pictures")
        return self._best(rows, k)

    def like(self, number: int, k: int = 10) -> list[Hit]:
        """The k crops most like crop `number`, itself left out: by its embedding.

        Raises UserError where there is no such crop, and for k as `by_text` does.
        """
        self._check(1, k)
        if not 0 <= number < len(self.index):
            raise UserError(
                f"the index has no crop {number}; it has {len(self.index)}, from 0"
            )
        found = self._best(self._rows([number]), k + 1)[0]
        others = [hit for hit in found if hit.number != number][:k]
        return [
            dataclasses.replace(hit, rank=rank) for rank, hit in enumerate(others, 1)
        ]

    def words(self, sentence: str, hits: Sequence[Hit]) -> Words:
        """Which words of a sentence mattered for some crops; see `words.Words`."""
        return self.words_of([sentence], [hits])[0]

    def words_of(
        self, sentences: Sequence[str], hits: Sequence[Sequence[Hit]]
    ) -> list[Words]:
        """The same for many sentences, each with crops of its own, in large batches."""
        read = self._parse(sentences)
        variants = [one.variants() for one in read]
        texts = [text for some in variants for text in some]
        rows = self._embed(texts, self.encoder.encode_text, "words")
        ends = np.cumsum([len(some) for some in variants])
        parts = np.split(rows, ends)[:-1]  # behind the last end is nothing
        crops = [self._rows([hit.number for hit in some]) for some in hits]
        return [
            attribution.effects(*both) for both in zip(read, parts, crops, strict=True)
        ]

    def notes(self, sentence: str) -> list[str]:
        """What a person should know of how the model reads a sentence."""
        return attribution.notes(self._parse([sentence])[0])

    def _parse(self, sentences: Sequence[str]) -> list[attribution.Sentence]:
        if isinstance(sentences, str):  # a sequence too, of letters
            raise UserError(f"give a list of sentences, as in ['{sentences}']")
        reader = self.encoder.tokenizer, self.encoder.lengths[-1]
        return [attribution.parse(sentence, *reader) for sentence in sentences]

    def _rows(self, numbers: Sequence[int]) -> np.ndarray:
        """(n, P) float32 embeddings of some crops."""
        rows = self.index.embeddings[np.array(numbers, np.int64)]
        return np.asarray(rows, np.float32)

    def _embed(self, items: Sequence, encode: Callable, what: str) -> np.ndarray:
        """(n, P) embeddings of sentences or pictures, as many at once as `SIZES` has."""
        out = [np.zeros((0, self.encoder.model.width), np.float32)]
        starts = range(0, len(items), SIZES[-1])
        for begin in progress(starts, what):
            some = list(items[begin : begin + SIZES[-1]])
            size = next(size for size in SIZES if size >= len(some))
            filled = some + some[-1:] * (size - len(some))
            out.append(encode(filled, batch_size=size)[: len(some)])
        return np.concatenate(out)

    def _best(self, queries: np.ndarray, k: int) -> list[list[Hit]]:
        """The hits of each of (Q, P) queries."""
        if not len(queries):
            return []
        k = min(k, len(self.index))
        found = self.gallery.top_k(queries, k, approximate=self.approximate)
        if not np.isfinite(found[0]).all():
            raise UserError(
                f"the embeddings of the index {self.index.folder} are damaged; make it "
                "anew with --config.overwrite=True"
            )
        crops = {}  # by number: many queries may find the same
        for number in np.unique(found[1]).tolist():
            crop = self.index[number]
            photograph = looks_like_a_photograph(crop.height, crop.width)
            crops[number] = crop, photograph
        scores, numbers = (of.tolist() for of in found)
        return [
            [
                Hit(rank, score, number, *crops[number])
                for rank, (score, number) in enumerate(zip(*both, strict=True), 1)
            ]
            for both in zip(scores, numbers, strict=True)
        ]

    def _check(self, queries: int, k: int) -> None:
        if not isinstance(k, int | np.integer) or k < 1:
            raise UserError(f"k={k} must be 1 or more: so many crops are shown")
        hits = queries * min(k, len(self.index))
        if hits > MOST:
            raise UserError(
                f"{queries:,} queries with k={k} find {hits:,} crops, more than "
                f"{MOST:,}; ask fewer at a time, or for fewer crops of each"
            )


def make(encoder: Encoder, index: Index, *, approximate: bool = False) -> Searcher:
    """A searcher of an index, with the model that made it, on its devices."""
    gallery = Gallery(index.embeddings, encoder.mesh)
    return Searcher(encoder, index, gallery, approximate)


def open_searcher(
    folder: str | os.PathLike,
    *,
    model: str = "",
    checkpoint: str = "",
    mesh: Mesh | None = None,
    dtype: str = "",
    approximate: bool = False,
) -> Searcher:
    """Opens an index, with the model that made it.

        import unipt_jax

        searcher = unipt_jax.open_index("runs/quickstart/index")
        for hit in searcher.by_text(["a woman in a red coat"], k=10)[0]:
            print(hit.rank, f"{hit.score:.3f}", searcher.index.file(hit.number))

    model: where it lies now, if not where it was; checkpoint: of a run, if another step
    than then; both must be the very model that the index was made with. mesh: devices
    of this process alone, by default all that it has. dtype: see `encoder.load`.
    approximate: see `Gallery.top_k`.
    Raises UserError where there is no index, its model is gone, or is another one now.
    """
    index = indexes.read(folder)
    encoder = load_model(
        index, model=model, checkpoint=checkpoint, mesh=mesh, dtype=dtype
    )
    return make(encoder, index, approximate=approximate)


def load_model(
    index: Index,
    *,
    model: str = "",
    checkpoint: str = "",
    mesh: Mesh | None = None,
    dtype: str = "",
) -> Encoder:
    """The model that an index was made with; see `open_searcher`."""
    made = index.model
    name = model or made.name
    if not model and os.path.isabs(name) and not os.path.exists(name):
        raise UserError(
            f"the index {index.folder} was made with {name}, which is gone; bring it "
            "back, or say with --config.model=DIR where it is now"
        )
    encoder = encoders.load(
        name,
        checkpoint=checkpoint or made.checkpoint,
        mesh=mesh or sharding.local_mesh(),
        dtype=dtype,
        size=made.size,
        fit=made.fit,
    )
    check_model(encoder, index)
    return encoder


def check_model(encoder: Encoder, index: Index) -> None:
    """Raises UserError where an index is of another model, whose space is another."""
    made = index.model
    if encoder.fingerprint == made.fingerprint:
        return
    differ = differences(made.parts, encoder.identity)
    raise UserError(
        f"the index {index.folder} was made with {made.said}, and {encoder.name} is "
        f"another model now: they differ in {differ}, so their embeddings cannot be "
        "compared; make the index anew with --config.model=DIR --config.images=DIR "
        "--config.overwrite=True, or, where it is kept, name what made it with "
        "--config.model=DIR and --config.checkpoint=STEP"
    )
