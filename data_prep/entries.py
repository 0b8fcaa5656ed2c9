"""What every data set's reader gives: its images, and what is known of each."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from data_prep.raw import Place, Raw, shortened
from unipt_jax.data.records import UNKNOWN
from unipt_jax.errors import UserError

PRETRAIN = "pretrain"
SPLITS = (PRETRAIN, "train", "val", "test")  # in the order they are written


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One image. place: where it lies, None where it is missing. where: what named it,
    for errors. The rest is as in `PersonRecord`."""

    image_id: str
    place: Place | None
    split: str
    where: str = ""
    person_id: int = UNKNOWN
    captions: tuple[str, ...] = ()
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class Counts(NamedTuple):
    """Of a split, or of a set."""

    images: int
    identities: int
    captions: int


@dataclasses.dataclass(frozen=True)
class Published:
    """What a data set is said to hold. splits: split -> counts. images, captions: other
    totals of them that are known of the same files. first_id: the lowest identity;
    they have no gaps, and follow each other as the splits do."""

    splits: Mapping[str, Counts]
    images: tuple[int, ...] = ()
    captions: tuple[int, ...] = ()
    first_id: int = 0

    @property
    def total(self) -> Counts:
        """Of the set."""
        return Counts(*map(sum, zip(*self.splits.values(), strict=True)))


@dataclasses.dataclass
class Survey:
    """A data set as it was found.

    entries: in the order they are written, split by split. sources: the annotation
    files, as paths. notes: how it was read, for people and for the set's metadata.
    said: how many images it is said to have, where no more is known.
    """

    name: str
    raw: Raw
    entries: list[Entry]
    sources: list[str]
    published: Published | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    said: str = ""

    @property
    def identified(self) -> bool:
        """Whether persons are known."""
        return any(entry.person_id != UNKNOWN for entry in self.entries)

    def counts(self) -> dict[str, Counts]:
        """Split -> what was found."""
        return count(self.entries)


def count(entries: Iterable[Entry]) -> dict[str, Counts]:
    """Split -> images, identities, captions; captions that are empty do not count."""
    images, captions = collections.Counter(), collections.Counter()
    persons = collections.defaultdict(set)
    for entry in entries:
        images[entry.split] += 1
        captions[entry.split] += sum(map(bool, entry.captions))
        if entry.person_id != UNKNOWN:
            persons[entry.split].add(entry.person_id)
    return {
        split: Counts(images[split], len(persons[split]), captions[split])
        for split in SPLITS
        if images[split]
    }


def _as_written(entry: Entry, name: str) -> Any:
    value = getattr(entry, name)
    if name == "person_id":
        value = entry.attributes.get("person", "" if value == UNKNOWN else value)
    return value


def in_order(entries: Sequence[Entry]) -> list[Entry]:
    """Split by split, in the order found; what names one image twice becomes one entry
    with the captions of both, each once.

    Raises UserError where the two differ in split or person.
    """
    found: dict[str, Entry] = {}
    for entry in entries:
        before = found.get(entry.image_id)
        if before is None:
            found[entry.image_id] = entry
            continue
        for name in ("split", "person_id"):
            if getattr(before, name) != getattr(entry, name):
                raise UserError(
                    f"{entry.where}: {shortened(entry.image_id)} has {name} "
                    f"'{_as_written(entry, name)}', but in {before.where} it has "
                    f"'{_as_written(before, name)}'; an image has one: correct the file"
                )
        captions = tuple(dict.fromkeys(before.captions + entry.captions))
        found[entry.image_id] = dataclasses.replace(before, captions=captions)
    return sorted(found.values(), key=lambda entry: SPLITS.index(entry.split))


def placed(raw: Raw, entries: Sequence[Entry]) -> list[Entry]:
    """The same entries with the places of their images, looked for by image id."""
    places = raw.locate([entry.image_id for entry in entries])
    return [
        dataclasses.replace(entry, place=place)
        for entry, place in zip(entries, places, strict=True)
    ]
