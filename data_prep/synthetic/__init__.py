"""Builds a set of synthetic pedestrians with texts, to learn and to test on.

In: a number of test identities and a seed. Out: one folder with person records (splits
`pretrain`, `train`, `val`, `test`), `captions/` (pseudo captions of `pretrain`) and
`tokenizer/` (a WordPiece vocabulary of their words, as transformers opens it).
"""

import contextlib
import dataclasses
import multiprocessing
import os
from collections.abc import Iterable, Iterator

import numpy as np
from etils import epath

from data_prep.synthetic import annotations as text
from data_prep.synthetic import draw, people, pseudo
from unipt_jax.data import tokenizers
from unipt_jax.data.records import (
    UNKNOWN,
    CaptionRecord,
    PersonRecord,
    contiguous_labels,
    write_set,
)
from unipt_jax.errors import UserError

VERSION = 1
SPLITS = ("test", "val", "train", "pretrain")
IMAGES = 4  # of one identity, each from a camera of its own
CAPTIONS = 2  # of one annotated image
VOCABULARY = 1200  # the most tokens; the words used are fewer


@dataclasses.dataclass(frozen=True)
class Shot:
    """One image before it is drawn. key: what all its random numbers derive from."""

    split: str
    identity: int
    person_id: int
    key: tuple[int, ...]
    person: people.Person
    view: people.View

    @property
    def image_id(self) -> str:
        """Unique in the set: split, identity, camera."""
        return f"{self.split}/{self.identity:05d}_c{self.view.camera}"

    @property
    def attributes(self) -> dict[str, str]:
        """What is true of the image; see `people.attributes`."""
        return people.attributes(self.person, self.view)


def sizes(identities: int, pretrain_images: int = 0) -> dict[str, int]:
    """Split name -> number of images. pretrain_images: 0 means 80 an identity."""
    return {
        "test": identities * IMAGES,
        "val": max(1, round(0.4 * identities)) * IMAGES,
        "train": max(1, round(0.5 * identities)) * IMAGES,
        "pretrain": pretrain_images or 80 * identities,
    }


def shots(split: str, count: int, *, seed: int, first_id: int = 0) -> Iterator[Shot]:
    """The first `count` images of a split, identity by identity, not drawn yet.

    first_id: the person id of the split's first identity.
    """
    for index in range(count):
        identity, image = divmod(index, IMAGES)
        key = (seed, SPLITS.index(split), identity)
        if image == 0:
            rng = np.random.default_rng((*key, 0))
            person = people.draw_person(rng)
            cameras = rng.permutation(people.CAMERAS)
        rng = np.random.default_rng((*key, 1, image))
        view = people.draw_view(rng, person, int(cameras[image]))
        yield Shot(split, identity, first_id + identity, (*key, 2, image), person, view)


def captions(shot: Shot) -> tuple[str, ...]:
    """What annotators write about the image."""
    return text.annotations(shot.attributes, seed=(*shot.key, 3), count=CAPTIONS)


def pseudo_record(shot: Shot) -> CaptionRecord:
    """What a caption generator would say of the image, with its mistakes."""
    caption, evidence = pseudo.pseudo_caption(
        shot.attributes, seed=shot.key[0], image_id=shot.image_id
    )
    return CaptionRecord(shot.image_id, (caption,), evidence)


def _images(
    shots: Iterable[Shot], height: int, width: int, workers: int
) -> Iterator[bytes]:
    """The shots as JPEG files, in their order, whatever the number of workers."""
    jobs = ((shot.person, shot.view, shot.key, height, width) for shot in shots)
    if workers == 1:
        yield from map(draw.jpeg, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        yield from pool.imap(draw.jpeg, jobs, chunksize=32)


def _records(
    split: str, shots: list[Shot], images: Iterator[bytes]
) -> Iterator[PersonRecord]:
    known = split != "pretrain"
    ids = [shot.person_id if known else UNKNOWN for shot in shots]
    labels = contiguous_labels(ids) if split == "train" else [UNKNOWN] * len(shots)
    for shot, person_id, label in zip(shots, ids, labels, strict=True):
        yield PersonRecord(
            image=next(images),
            image_id=shot.image_id,
            file_path=f"{shot.image_id}.jpg",
            person_id=person_id,
            label=label,
            captions=captions(shot) if known else (),
            attributes=shot.attributes,
        )


def build(
    out: str | os.PathLike,
    *,
    identities: int = 250,
    seed: int = 0,
    height: int = 192,
    width: int = 64,
    workers: int | None = None,
    pretrain_images: int = 0,
) -> None:
    """Writes the whole set to `out`, or nothing.

    identities: of the test split; `sizes` says what follows from it. height, width: of
    the images, in pixels. workers: processes that draw, None for one a core; the set
    is the same for any number. pretrain_images: 0 means 80 an identity.
    Raises `UserError` for a value that makes no set, and where `out` exists already.
    """
    if identities < 1 or height < 16 or width < 8 or pretrain_images < 0:
        raise UserError(
            f"identities {identities}, size {height}x{width}, pretrain_images "
            f"{pretrain_images}: identities must be 1 or more, the size 16x8 pixels or "
            "more, pretrain_images 0 (80 an identity) or more"
        )
    plan, first_id = {}, 0
    for split, count in sizes(identities, pretrain_images).items():
        plan[split] = list(shots(split, count, seed=seed, first_id=first_id))
        first_id += -(-count // IMAGES)
    everything = [shot for split in plan.values() for shot in split]
    workers = workers or len(os.sched_getaffinity(0))
    images = _images(everything, height, width, workers)
    splits = {name: _records(name, plan[name], images) for name in plan}
    metadata = {
        "name": "synthetic",
        "version": VERSION,
        "seed": seed,
        "identities": identities,
        "height": height,
        "width": width,
        "counts": {name: len(split) for name, split in plan.items()},
    }

    def extras(folder: epath.Path) -> None:
        machine = [pseudo_record(shot) for shot in plan["pretrain"]]
        said = {"made_by": "data_prep.synthetic.pseudo", "corrupted": pseudo.CORRUPTED}
        write_set(
            folder / "captions",
            CaptionRecord,
            {"pretrain": machine},
            metadata=metadata | said,
        )
        texts = [text for record in machine for text in record.captions]
        texts += [text for shot in plan["train"] for text in captions(shot)]
        tokenizers.train(texts, size=VOCABULARY).save(folder / "tokenizer")

    with contextlib.closing(images):
        write_set(out, PersonRecord, splits, metadata=metadata, extras=extras)
