"""What a set of synthetic persons can be searched by without learning from shapes.

In: a set that `data_prep.synthetic` built. Out: Rank-1 in percent of a ridge regression
from 12x4 RGB pixels to words, and of an oracle that knows every true attribute: the
marks between which a model's Rank-1 lies.

    python -m benchmarks.marks --records data/synthetic --captions data/synthetic/captions
"""

import argparse
import io
import json
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import PIL
from PIL import Image

from data_prep.synthetic import annotations as texts
from unipt_jax.data import records

GRID = (4, 12)  # width, height in pixels of what the ridge regression sees
LAMBDAS = (30.0, 300.0, 3000.0)


def rank1(scores: np.ndarray, wanted: np.ndarray, ids: np.ndarray) -> float:
    """Rank-1 in percent; of images that tie for the first place each may be it.

    scores: (queries, gallery); wanted: (queries,) and ids: (gallery,) person ids.
    """
    first = scores == scores.max(axis=1, keepdims=True)
    right = first & (wanted[:, None] == ids[None, :])
    return float(100 * (right.sum(1) / first.sum(1)).mean())


def pixels(images: Sequence[bytes]) -> np.ndarray:
    """JPEG files -> (images, 12 * 4 * 3) float64 of 0 .. 255."""
    rows = []
    for data in images:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        rows.append(np.asarray(image.resize(GRID, Image.Resampling.BOX)).ravel())
    return np.asarray(rows, np.float64)


class Words:
    """Bags of words, weighted by how rare a word is and of length 1, then centred."""

    def __init__(self, captions: Sequence[Sequence[str]]):
        bags = [{w for c in few for w in texts.tokens(c)} for few in captions]
        counts = Counter(word for bag in bags for word in sorted(bag))
        self.index = {word: i for i, word in enumerate(sorted(counts))}
        self.idf = np.array([np.log(len(bags) / counts[w]) for w in self.index])
        self.mean = np.zeros(len(self.index))
        self.mean = self(captions).mean(axis=0)

    def __call__(self, captions: Sequence[Sequence[str]]) -> np.ndarray:
        bags = np.zeros((len(captions), len(self.index)))
        for bag, few in zip(bags, captions, strict=True):
            for word in (w for c in few for w in texts.tokens(c)):
                if word in self.index:
                    bag[self.index[word]] = 1.0
        bags *= self.idf
        return bags / (np.linalg.norm(bags, axis=1, keepdims=True) + 1e-9) - self.mean


class Ridge:
    """Ridge regression from standardised pixels to bags of words, in closed form."""

    def __init__(self, inputs: np.ndarray, captions: Sequence[Sequence[str]]):
        self.words = Words(captions)
        self.mean, self.scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-9
        x = self._standard(inputs)
        self.gram, self.moment = x.T @ x, x.T @ self.words(captions)

    def _standard(self, inputs: np.ndarray) -> np.ndarray:
        x = (inputs - self.mean) / self.scale
        return np.concatenate([x, np.ones((len(x), 1))], axis=1)

    def scores(
        self, inputs: np.ndarray, queries: Sequence[str], penalty: float
    ) -> np.ndarray:
        """(queries, images) cosines."""
        weights = np.linalg.solve(
            self.gram + penalty * np.eye(len(self.gram)), self.moment
        )
        image = self._standard(inputs) @ weights
        text = self.words([(query,) for query in queries])
        image /= np.linalg.norm(image, axis=1, keepdims=True) + 1e-9
        text /= np.linalg.norm(text, axis=1, keepdims=True) + 1e-9
        return text @ image.T


def ridge(
    train_pixels: np.ndarray,
    train_captions: Sequence[Sequence[str]],
    gallery_pixels: np.ndarray,
    queries: Sequence[str],
    *,
    choose: tuple[np.ndarray, Sequence[str], np.ndarray, np.ndarray],
) -> np.ndarray:
    """(queries, gallery) scores of a ridge regression from pixels to words.

    choose: pixels, queries, the queries' and the images' person ids of another split,
    on which the penalty with the best Rank-1 is chosen.
    """
    model = Ridge(train_pixels, train_captions)
    other, asked, wanted, ids = choose
    best = max(LAMBDAS, key=lambda p: rank1(model.scores(other, asked, p), wanted, ids))
    return model.scores(gallery_pixels, queries, best)


def oracle(
    attributes: Sequence[Mapping[str, str]], queries: Sequence[str]
) -> np.ndarray:
    """(queries, gallery) scores of a search that knows each image's true attributes.

    A query agrees with an image by the words that an annotator of it could have used
    (a loose word counts for less), each weighted by how few images it is said of.
    """
    said = [texts.vocabulary(row) for row in attributes]
    index = {w: i for i, w in enumerate(sorted(set().union(*said)))}
    table = np.zeros((len(said), len(index)))
    for row, known in zip(table, said, strict=True):
        for word, weight in known.items():
            row[index[word]] = weight
    idf = np.log(len(said) / table.sum(axis=0).clip(1.0))
    asked = np.zeros((len(queries), len(index)))
    for row, query in zip(asked, queries, strict=True):
        for word in texts.mentions(query):
            if word in index:
                row[index[word]] = 1.0
    return np.round((asked * idf) @ table.T, 9)


def measure(folder: str, captions: str) -> dict[str, float | int]:
    """The marks of the set in that folder, with those captions of its unlabelled part."""
    split = {
        name: list(records.Records(folder, name, records.PersonRecord))
        for name in ("pretrain", "val", "test")
    }
    machine = records.Records(captions, "pretrain", records.CaptionRecord)
    seen = {name: pixels([r.image for r in rows]) for name, rows in split.items()}
    ids = {k: np.array([r.person_id for r in rows]) for k, rows in split.items()}
    asked = {k: [c for r in rows for c in r.captions] for k, rows in split.items()}
    wanted = {
        k: np.array([r.person_id for r in rows for _ in r.captions])
        for k, rows in split.items()
    }
    clean = [
        texts.annotations(record.attributes, seed=(index, 99))
        for index, record in enumerate(split["pretrain"])
    ]
    choose = seen["val"], asked["val"], wanted["val"], ids["val"]
    scores = {
        name: ridge(
            seen["pretrain"], captions, seen["test"], asked["test"], choose=choose
        )
        for name, captions in (
            ("ridge", [record.captions for record in machine]),
            ("ridge_clean", clean),
        )
    }
    scores["oracle"] = oracle([r.attributes for r in split["test"]], asked["test"])
    marks = {
        k: round(rank1(s, wanted["test"], ids["test"]), 2) for k, s in scores.items()
    }
    same = wanted["test"][:, None] == ids["test"][None, :]
    marks["chance"] = round(float(100 * same.mean()), 2)
    return marks | {"queries": len(asked["test"]), "gallery": len(split["test"])}


def main() -> None:
    """Prints the marks of a set as one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", default="data/synthetic", help="the set's folder")
    parser.add_argument(
        "--captions", default="", help="of its unlabelled images; default: its own"
    )
    start, args = time.perf_counter(), parser.parse_args()
    marks = measure(args.records, args.captions or f"{args.records}/captions")
    versions = {"numpy": np.__version__, "pillow": PIL.__version__}
    marks |= versions | {"device": platform.machine() + " CPU"}
    print(json.dumps(marks | {"seconds": round(time.perf_counter() - start, 1)}))


if __name__ == "__main__":
    main()
