"""Looks at a data set before it is trained on: a survey in, findings out."""

import collections
import dataclasses
import errno
import hashlib
import itertools
import re
import threading
import warnings
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from data_prep import workers
from data_prep.entries import Counts, Entry, Survey
from data_prep.raw import Place, Reader, as_it_lies, readable, shortened, tails
from unipt_jax.data import images
from unipt_jax.data.records import UNKNOWN
from unipt_jax.data.tokenizers import Tokenizer
from unipt_jax.errors import UserError, of_the_file

# PIL warns of pictures that are refused in the next moment, and of tags nobody reads.
warnings.filterwarnings("ignore", module="PIL")

_BATCH = 256  # images a worker looks at before it tells
_HAVE, _DEAD = ("image has", "images have"), ("is a dead link", "are dead links")
_SMALL = 16  # pixels: nobody can be made out in a picture so high or wide
_WORD = re.compile(r"\w+|[^\w\s]")
# Any sentence on a person has one of these; none of them is a word of the languages that
# such captions are otherwise met in.
_ENGLISH = frozenset(
    "a the is are with wearing wears and his her he she has of woman person in on".split()  # noqa: SIM905
)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something to know. weight: "note"; "lack", without which one can go on if one
    says so; "fault", which must be mended."""

    weight: str
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What reading an image gave. fault: why it cannot be read, or ""."""

    digest: bytes = b""
    height: int = 0
    width: int = 0
    fault: str = ""


_mine = threading.local()


def reader(root: str) -> Reader:
    """One for all that this thread reads there: archives stay open, and are wound."""
    if getattr(_mine, "root", None) != root:
        _mine.root, _mine.reader = root, Reader(root)
    return _mine.reader


def read_image(root: str, place: Place) -> bytes:
    """The encoded image at a place below `root`.

    Raises OSError for one that cannot be read, UserError where the store cannot: a file
    that was there when the folder was listed is not gone alone.
    """
    try:
        return reader(root).read(place)
    except OSError as error:
        if of_the_file(error) and error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        raise UserError(
            f"{readable(place.file)} in {root} cannot be read now ({error}); run the "
            "same command again when it can"
        ) from error


def fault(error: Exception) -> str:
    """Why an image cannot be read, in short."""
    return (" ".join(str(error).split()) or type(error).__name__)[:200]


def look(work: tuple[str, Sequence[Place]]) -> list[Look]:
    """Reads the images at places below a folder."""
    root, places = work
    out = []
    for place in places:
        try:
            encoded = read_image(root, place)
            height, width = images.measure(encoded)
        except OSError as error:
            out.append(Look(fault=fault(error)))
        else:
            digest = hashlib.sha256(encoded).digest()[:16]
            out.append(Look(digest, height, width))
    return out


def look_at_all(survey: Survey, count: int | None) -> list[Look | None]:
    """Reads every image, with so many workers; None where one is missing."""
    entries = survey.entries
    numbers = [n for n, entry in enumerate(entries) if entry.place is not None]
    numbers.sort(key=lambda number: as_it_lies(entries[number].place))
    there = [entries[n].place for n in numbers]
    batches = (
        (survey.raw.root, there[at : at + _BATCH])
        for at in range(0, len(there), _BATCH)
    )
    looks = []
    with tqdm(total=len(there), desc="reading images", unit=" images") as progress:
        count = 1 if len(there) <= _BATCH else count
        for some in workers.run(look, batches, workers=count):
            looks += some
            progress.update(len(some))
    found = dict(zip(numbers, looks, strict=True))
    return [found.get(number) for number in range(len(entries))]


def table(survey: Survey) -> str:
    """Found against published, split by split; `missing` of the images are not there."""
    found = survey.counts()
    published = survey.published.splits if survey.published else {}
    none, lines = Counts(0, 0, 0), []
    absent = collections.Counter(e.split for e in survey.entries if e.place is None)
    rows = [
        (name, found.get(name, none), published.get(name), absent[name])
        for name in dict.fromkeys([*published, *found])
    ]
    if len(rows) > 1:
        total = survey.published.total if survey.published else None
        sums = Counts(*map(sum, zip(*(row[1] for row in rows), strict=True)))
        rows.append(("all", sums, total, absent.total()))
    lines.append(f"{'split':<9}{'missing':>8}")
    lines[0] += "".join(f"{name:>20}" for name in Counts._fields)
    for name, counts, said, gone in rows:
        line = f"{name:<9}{gone:>8,}"
        for value, other in zip(counts, said or none, strict=True):
            text = f"{value:,}" + (f" of {other:,}" if said else "")
            line += f"{text:>20}"
        lines.append(line)
    if survey.published:
        lines.append("(named in the annotation, of published)")
    elif survey.said:
        lines.append(f"(published: about {survey.said} images)")
    return "\n".join(lines)


def counted(number: int, one: str, many: str) -> str:
    """1 image is, 2,000 images are."""
    return f"{number:,} {one if number == 1 else many}"


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few names."""
    shown = ", ".join(shortened(name) for name in names[:most])
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")


def _heads(path: str) -> list[str]:
    """a, a/b and a/b/c of a/b/c."""
    return [path[:at] for at, c in enumerate(path) if c == "/"] + [path]


def missing(survey: Survey) -> list[Finding]:
    """Images that are named but not there, by their folder."""
    entries = [entry for entry in survey.entries if entry.place is None]
    folders = collections.defaultdict(list)
    for entry in entries:
        folders[entry.image_id.rpartition("/")[0] or "."].append(entry.image_id)
    totals = collections.Counter(
        e.image_id.rpartition("/")[0] or "." for e in survey.entries
    )
    dead = {tail for link in survey.raw.dead for tail in tails(link)}
    out = []
    for folder, names in sorted(folders.items(), key=lambda item: -len(item[1])):
        whole = len(names) == totals[folder]
        links = sum(not dead.isdisjoint(_heads(name)) for name in names)
        text = f"{len(names):,} of {totals[folder]:,} images of {shortened(folder)}"
        text += " is missing" if len(names) == 1 else " are missing"
        text += ", the whole folder" if whole else f": {some(names)}"
        out.append(text + (f" ({counted(links, *_DEAD)})" if links else ""))
    if len(out) > 20:
        rest = sum(map(len, folders.values()))
        out = [*out[:20], f"... {len(out):,} folders in all, {rest:,} images"]
    return [Finding("lack", text) for text in out]


def of_counts(survey: Survey) -> list[Finding]:
    """Where the annotation does not hold what is published of it."""
    if survey.published is None:
        return []
    found, published, out = survey.counts(), survey.published, []
    as_well = {
        name: sum(getattr(counts, name) for counts in found.values())
        in getattr(published, name)
        for name in ("images", "captions")
    }
    for split, said in published.splits.items():
        there = found.get(split, Counts(0, 0, 0))
        differ = [
            f"{name} {value:,} of {wanted:,}"
            for name, value, wanted in zip(Counts._fields, there, said, strict=True)
            if value != wanted and not as_well.get(name)
        ]
        if differ:
            text = f"{split} is not as published: {', '.join(differ)}"
            out.append(Finding("lack", text))
    for split in found.keys() - published.splits.keys():
        text = f"{split} has {found[split].images:,} images; no such split is published"
        out.append(Finding("lack", text))
    return out


def of_identities(entries: Sequence[Entry]) -> list[Finding]:
    """Persons in more than one split, and persons seen once."""
    splits, seen = collections.defaultdict(set), collections.Counter()
    for entry in entries:
        if entry.person_id != UNKNOWN:
            splits[entry.person_id].add(entry.split)
            seen[entry.person_id] += 1
    out = []
    tested = {"val", "test"}
    if both := sorted(p for p, s in splits.items() if len(s) > 1 and s & tested):
        text = counted(len(both), "identity is", "identities are")
        text += " in more than one split: "
        text += some([f"{p} ({' and '.join(sorted(splits[p]))})" for p in both])
        text += "; what is tested would have been trained on: correct the splits"
        out.append(Finding("fault", text))
    if once := sorted(p for p, n in seen.items() if n == 1):
        text = counted(len(once), "identity has", "identities have")
        text += f" one image: {some(list(map(str, once)))}"
        out.append(Finding("note", text))
    return out


def of_captions(
    entries: Sequence[Entry], *, limit: int, tokenizer: Tokenizer | None
) -> list[Finding]:
    """Captions that are missing, empty, too long, or not English.

    limit: tokens that a model reads. tokenizer: None counts words, which are fewer.
    """
    out = []
    empty = [e.image_id for e in entries if not all(e.captions)]
    if empty:
        text = f"{counted(len(empty), *_HAVE)} an empty caption: {some(empty)}"
        out.append(Finding("lack", text))
    if without := [e.image_id for e in entries if not any(e.captions)]:
        text = f"{counted(len(without), *_HAVE)} no caption at all: {some(without)}"
        out.append(Finding("lack", text))
    foreign = [c for e in entries for c in e.captions if c and not looks_english(c)]
    if foreign:
        text = counted(len(foreign), "caption does", "captions do")
        text += " not look English: "
        text += some([repr(c[:60]) for c in foreign])
        out.append(Finding("note", text))
    out += _too_long(entries, limit, tokenizer)
    repeated = sum(len(set(e.captions)) < len(e.captions) for e in entries)
    if repeated:
        text = f"{counted(repeated, *_HAVE)} the same caption twice"
        out.append(Finding("note", text))
    return out


def _too_long(entries, limit: int, tokenizer: Tokenizer | None) -> Iterator[Finding]:
    cut = [
        (caption, entry.image_id)
        for entry in entries
        for caption in entry.captions
        if len(caption.encode()) + 2 > limit  # a token has a byte at least
    ]
    if tokenizer is None:
        long = [name for c, name in cut if len(_WORD.findall(c)) + 2 > limit]
        how = "words and marks alone (--tokenizer FOLDER counts its tokens)"
    else:
        rows, _ = tokenizer.encode([c for c, _ in cut], 1 << 20) if cut else ([], 0)
        long = [n for (_, n), row in zip(cut, rows, strict=True) if len(row) > limit]
        how = "tokens"
    if long:
        text = counted(len(long), "caption is", "captions are")
        text += f" longer than {limit} {how}; the rest is cut off in training: "
        yield Finding("note", text + some(long))


def looks_english(caption: str) -> bool:
    """Whether a caption has Latin letters, and, from four words on, English ones."""
    letters = [c for c in caption if c.isalpha()]
    if sum(c.isascii() for c in letters) < 0.8 * len(letters) or not letters:
        return False
    words = re.findall(r"[a-z]+", caption.lower())
    return len(words) < 4 or not _ENGLISH.isdisjoint(words)


def of_images(entries: Sequence[Entry], looks: Sequence[Look | None]) -> list[Finding]:
    """Images that cannot be read, that are the same, or too small."""
    out, groups = [], collections.defaultdict(list)
    read = [(e, k) for e, k in zip(entries, looks, strict=True) if k is not None]
    often = collections.Counter(k.digest for _, k in read if not k.fault)
    for entry, look in read:
        if not look.fault and often[look.digest] > 1:
            groups[look.digest].append(entry)
    if bad := [f"{e.image_id} ({k.fault})" for e, k in read if k.fault]:
        text = f"{counted(len(bad), 'image', 'images')} cannot be read: {some(bad, 10)}"
        out.append(Finding("lack", text))
    tiny = [
        e.image_id for e, k in read if not k.fault and min(k.height, k.width) < _SMALL
    ]
    if tiny:
        text = counted(len(tiny), "image is", "images are")
        text += f" less than {_SMALL} pixels high or wide"
        out.append(Finding("note", f"{text}: {some(tiny)}"))
    if same := list(groups.values()):
        extra = sum(len(group) - 1 for group in same)
        text = counted(
            extra, "image is a copy of another", "images are copies of others"
        )
        text += ", to the byte: "
        text += some([" = ".join(e.image_id for e in group[:3]) for group in same])
        for what, name in (("split", "splits"), ("person_id", "identities")):
            across = [g for g in same if len({getattr(e, what) for e in g}) > 1]
            if across:
                text += f"; {len(across):,} of them across {name}"
        out.append(Finding("note", text))
    return out


def unlisted(survey: Survey) -> list[Finding]:
    """Pictures that no annotation names."""
    used = {e.place.file for e in survey.entries if e.place and not e.place.member}
    others = [p for p, place in survey.raw.files.items()
              if p.lower().endswith(images.SUFFIXES) and not place.member
              and p not in used]  # fmt: skip
    if not others:
        return []
    text = counted(len(others), "picture is", "pictures are")
    text += " in no annotation, and left out: "
    return [Finding("note", text + some([readable(path) for path in others]))]


def without_pictures(survey: Survey, *, limit: int, tokenizer=None) -> list[Finding]:
    """All that is found without reading an image."""
    entries = survey.entries
    return list(
        itertools.chain(
            of_counts(survey),
            missing(survey),
            of_identities(entries),
            of_captions(entries, limit=limit, tokenizer=tokenizer)
            if survey.sources  # else nobody said that there are any
            else (),
            unlisted(survey),
        )
    )
