"""Writes a record set: a survey in, a folder in shards out, by all cores.

While it is written it lies in `OUT.partial`: `plan/` says what goes into each shard,
`set/` has the shards that are done, `parts/` what was found out about each. What was
killed goes on from there; `OUT` appears when all is there.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from tqdm import tqdm

from data_prep import checks, workers
from data_prep.entries import PRETRAIN, SPLITS, Entry, Survey
from data_prep.raw import Place, as_it_lies, is_wound
from unipt_jax import files
from unipt_jax.data import images, shards
from unipt_jax.data.records import PersonRecord, contiguous_labels
from unipt_jax.errors import UserError

LEFT_OUT = "left_out.jsonl"
_SHARDS, _FEWEST, _MOST = 64, 256, 4096  # of a split; images of a shard


@dataclasses.dataclass(frozen=True)
class Options:
    """What is decided about a set, besides what is in it.

    size: height and width to store images at, or None for as they are. quality: of the
    JPEGs that are written anew. shard: images in a shard, 0 for a number that keeps a
    set's shards between 256 and 4096 images.
    """

    size: tuple[int, int] | None = None
    quality: int = 95
    shard: int = 0

    def __post_init__(self) -> None:
        if self.size is not None and not all(8 <= side <= 8192 for side in self.size):
            raise UserError(
                f"--height {self.size[0]} --width {self.size[1]}: expected 8 to 8192 "
                "pixels each, such as 384 and 128"
            )
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: expected 1 to 100, such as 95")

    def images(self, count: int) -> int:
        """Images in a shard of a split of `count`: the same for any number of cores."""
        return self.shard or min(max(-(-count // _SHARDS), _FEWEST), _MOST)

    @property
    def stored(self) -> str:
        """How images are stored, for people."""
        anew = f"JPEG of quality {self.quality}"
        if self.size is None:
            return f"as they are; what is not upright RGB in JPEG or PNG, as {anew}"
        height, width = self.size
        return f"{height}x{width}, resized by PIL, bicubic, as {anew}"


@dataclasses.dataclass(frozen=True)
class Task:
    """One shard to write. folder: `OUT.partial`. allow: leave out what cannot be read."""

    folder: str
    split: str
    shard: int
    allow: bool


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be written, as `plan.json` in `OUT.partial` has it.

    shards: split -> how many. images: of each shard, split by split. fingerprint: of
    all rows and options.
    """

    raw: str
    options: Options
    shards: Mapping[str, int]
    images: Mapping[str, Sequence[int]]
    fingerprint: str

    @classmethod
    def read(cls, folder: epath.Path) -> "Plan":
        """The plan in a folder."""
        try:
            values = json.loads((folder / "plan.json").read_text())
            options = values.pop("options")
            if options["size"]:
                options["size"] = tuple(options["size"])
            return cls(options=Options(**options), **values)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(
                f"{folder}/plan.json is damaged; remove {folder}, then run the same "
                "command again"
            ) from error

    def sets(self, folder: epath.Path) -> dict[str, shards.ShardedSet]:
        """The splits' files."""
        return {
            split: shards.ShardedSet(folder / "set", PersonRecord, split, count)
            for split, count in self.shards.items()
        }


def _write(file: epath.Path, text: str) -> None:
    partial = files.partial_of(file)
    partial.write_text(text)
    files.settle(partial, file)


def _part(folder: epath.Path, split: str, shard: int) -> epath.Path:
    return folder / "parts" / f"{split}-{shard:05d}.json"


def _rows(folder: epath.Path, split: str, shard: int) -> epath.Path:
    return folder / "plan" / f"{split}-{shard:05d}.jsonl"


@functools.lru_cache(maxsize=1)
def _plan_in(folder: str, stamp: int) -> Plan:
    return Plan.read(epath.Path(folder))


def _plan_of(task: Task) -> Plan:
    """Read once by each process, and anew where another build has begun there."""
    return _plan_in(task.folder, os.stat(f"{task.folder}/plan.json").st_mtime_ns)


def _read(file: epath.Path, raw: str) -> Iterator[tuple[dict, bytes | OSError]]:
    """A shard's rows with their encoded images, or what stands in the way."""

    def read(place: Place) -> bytes | OSError:
        try:
            return checks.read_image(raw, place)
        except OSError as error:
            return error

    rows = [json.loads(line) for line in file.read_text().splitlines()]
    places = [Place(*row.pop("place")) for row in rows]
    # In an archive's own order: see `is_wound`.
    wound = sorted(filter(is_wound, places), key=as_it_lies)
    ahead = {place: read(place) for place in wound}
    for row, place in zip(rows, places, strict=True):
        yield row, ahead.pop(place) if place in ahead else read(place)


def write_shard(task: Task) -> list[dict[str, str]]:
    """Writes a shard and its part; no shard where an image cannot be read and may not
    be left out. Gives the images that cannot be read, with the reason."""
    folder = epath.Path(task.folder)
    plan = _plan_of(task)
    split = plan.sets(folder)[task.split]
    digest, bad, captions, written = hashlib.sha256(), [], 0, 0
    with contextlib.suppress(_Unreadable), split.open(task.shard) as add:
        for row, encoded in _read(_rows(folder, task.split, task.shard), plan.raw):
            try:
                if isinstance(encoded, OSError):
                    raise encoded
                size, quality = plan.options.size, plan.options.quality
                stored = images.as_stored(encoded, size, quality=quality)
            except OSError as error:
                bad.append({"image_id": row["image_id"], "why": checks.fault(error)})
                continue
            digest.update(hashlib.sha256(encoded).digest())
            captions, written = captions + len(row["captions"]), written + 1
            add(PersonRecord(image=stored, **row))
        part = {"images": written, "captions": captions, "bad": bad}
        part["sha256"] = digest.hexdigest()
        _write(_part(folder, task.split, task.shard), json.dumps(part))
        if bad and not task.allow:
            raise _Unreadable
    return bad


def result(task: Task) -> list[dict[str, str]] | None:
    """What `write_shard` gave for a task, in any process, or None if it has not yet."""
    folder = epath.Path(task.folder)
    plan = _plan_of(task)
    file = _part(folder, task.split, task.shard)
    if not file.exists():
        return None
    bad = json.loads(file.read_text())["bad"]
    refused = bad and not task.allow
    return bad if refused or _done(folder, plan, task.split, task.shard) else None


class _Unreadable(Exception):
    """Ends a shard that must not be written."""


def _by_split(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    groups = {split: [e for e in entries if e.split == split] for split in SPLITS}
    return {split: mine for split, mine in groups.items() if mine}


def kept(survey: Survey, dropped: Mapping[str, str]) -> dict[str, list[Entry]]:
    """Split -> what is to be written. Raises UserError where that is nothing."""
    splits = _by_split([e for e in survey.entries if e.image_id not in dropped])
    for split in survey.counts().keys() - splits.keys():
        raise UserError(
            f"all images of {split} would be left out; nothing was written: mend them, "
            "or give the folder that holds them"
        )
    return splits


def _row(entry: Entry, label: int) -> dict[str, Any]:
    row: dict[str, Any] = {"image_id": entry.image_id, "file_path": entry.image_id}
    row |= {"place": entry.place, "person_id": entry.person_id, "label": label}
    row["captions"] = [caption for caption in entry.captions if caption]
    return row | {"attributes": entry.attributes}


def _lines(splits: dict[str, list[Entry]], options: Options) -> Iterator:
    """Split, shard, number of rows and text of each file of the plan."""
    for split, entries in splits.items():
        labels = contiguous_labels([entry.person_id for entry in entries])
        size = options.images(len(entries))
        for shard, at in enumerate(range(0, len(entries), size)):
            some = slice(at, at + size)
            rows = map(_row, entries[some], labels[some])
            lines = [json.dumps(row, sort_keys=True) + "\n" for row in rows]
            yield split, shard, len(lines), "".join(lines)


def make_plan(
    folder: epath.Path, splits: dict[str, list[Entry]], raw: str, options: Options
) -> Plan:
    """Writes the plan, or finds it there from an earlier run.

    Raises UserError where `folder` has another one.
    """
    there = (folder / "plan.json").exists()
    if not there:
        for name in ("plan", "parts", "set"):  # of a plan that never came to be
            (folder / name).rmtree(missing_ok=True)
        (folder / "plan").mkdir(parents=True)
        (folder / "parts").mkdir()
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(options)).encode())
    count: dict[str, list[int]] = {split: [] for split in splits}
    for split, shard, length, text in _lines(splits, options):
        digest.update(f"{split} {shard}\n{text}".encode())
        count[split].append(length)
        if not there:
            _write(_rows(folder, split, shard), text)
    plan = Plan(
        raw=raw,
        options=options,
        shards={split: len(lengths) for split, lengths in count.items()},
        images=count,
        fingerprint=digest.hexdigest(),
    )
    if there:
        _check_same(folder, plan)
    if not there or Plan.read(folder).raw != raw:  # its folder has moved
        _write(folder / "plan.json", json.dumps(dataclasses.asdict(plan)))
        _plan_in.cache_clear()  # two plans of 10 ms may have one time
    return plan


def _check_same(folder: epath.Path, plan: Plan) -> None:
    before = Plan.read(folder)
    if before.fingerprint == plan.fingerprint:
        return
    what = "other images or annotations"
    if before.options != plan.options:
        what = f"images {before.options.stored}, now {plan.options.stored}"
        if before.options.stored == plan.options.stored:
            what = f"--shard-images {before.options.shard}, now {plan.options.shard}"
    raise UserError(
        f"{folder} was left by a build of another set ({what}); remove it, give the "
        "same command as then, or another --out"
    )


def partial_of(out: str | os.PathLike) -> epath.Path:
    """Where a set lies while it is written."""
    out = epath.Path(out)
    return out.with_name(f"{out.name}.partial")


def clear(out: str | os.PathLike) -> None:
    """Removes what is left of a build that was killed when its set was there."""
    with alone(partial_of(out), epath.Path(out)):
        partial_of(out).rmtree(missing_ok=True)


@contextlib.contextmanager
def _naming(folder: epath.Path) -> Iterator[None]:
    """Has the system's errors that name no file name the folder."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(folder)
        raise


@contextlib.contextmanager
def alone(folder: epath.Path, out: epath.Path) -> Iterator[None]:
    """Holds a folder against other builds on this machine."""
    if folder.is_file():
        raise UserError(f"{folder} is a file; remove it, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"another process is preparing {out} now; wait for it, or give another --out"
    )
    with shards.alone(folder, refusal):
        yield


def write(
    survey: Survey,
    out: str | os.PathLike,
    *,
    options: Options,
    dropped: Mapping[str, str],
    allow_missing: bool,
    metadata: Mapping[str, Any],
    run: Callable[[list[Task]], Iterator] | None = None,
    count: int | None = None,
    extras: Callable[[epath.Path], None] = lambda folder: None,
) -> None:
    """Writes the set, all of it, or goes on with what an earlier run left.

    dropped: images to leave out, with the reason. allow_missing: images of `pretrain`
    that turn out not to be readable are left out, too. metadata: kept with the set, to
    which what was found while writing is added. run: does the tasks where it is not
    `count` worker processes. extras: writes further files into the set.
    Raises UserError where images cannot be read and may not be left out; what is done
    is kept.
    """
    out = epath.Path(out)
    folder = partial_of(out)
    splits = kept(survey, dropped)
    with _naming(folder), alone(folder, out):
        if out.exists():  # another process was faster
            folder.rmtree(missing_ok=True)
            raise UserError(f"{out} has been written by another process meanwhile")
        plan = make_plan(folder, splits, survey.raw.root, options)
        bad = _write_shards(folder, plan, allow_missing, run, count)
        if bad:
            done = sum(_done(folder, plan, s, n) for s, n in _all(plan))
            names = [f"{b['image_id']} ({b['why']})" for b in bad]
            raise UserError(
                f"{checks.counted(len(bad), 'image', 'images')} cannot be read: "
                f"{checks.some(names, 10)}; "
                "mend them, or leave them out with --allow-missing; "
                f"{done:,} of {len(_all(plan)):,} shards are kept in {folder}"
            )
        _finish(folder, plan, dropped, metadata, extras)
        (folder / "set").rename(out)
        folder.rmtree()


def _all(plan: Plan) -> list[tuple[str, int]]:
    return [(split, n) for split, count in plan.shards.items() for n in range(count)]


def _done(folder: epath.Path, plan: Plan, split: str, shard: int) -> bool:
    return plan.sets(folder)[split].done(shard) and _part(folder, split, shard).exists()


def _write_shards(folder, plan: Plan, allow: bool, run, count) -> list[dict[str, str]]:
    """Writes what is not there; gives the images that stand in the way."""
    tasks = [
        Task(str(folder), split, shard, allow and split == PRETRAIN)
        for split, shard in _all(plan)
    ]
    left = [t for t in tasks if (bad := result(t)) is None or (bad and not t.allow)]
    for task in left:  # what an earlier run, which may have left images out, had of it
        _part(folder, task.split, task.shard).unlink(missing_ok=True)
        plan.sets(folder)[task.split].file(task.shard).unlink(missing_ok=True)
    total = sum(map(sum, plan.images.values()))
    done = total - sum(plan.images[task.split][task.shard] for task in left)
    count = 1 if total <= _FEWEST else count
    results = run(left) if run else workers.run(write_shard, left, workers=count)
    bad = []
    progress = tqdm(total=total, initial=done, desc="writing images", unit=" images")
    with progress, contextlib.closing(results):
        for task, faults in zip(left, results, strict=True):
            progress.update(plan.images[task.split][task.shard])
            bad += [] if task.allow else faults
    return bad


def _finish(folder, plan: Plan, dropped, metadata, extras) -> None:
    """Describes the set and writes what belongs to it."""
    digest, found = hashlib.sha256(), dict(dropped)
    none = {"images": 0, "captions": 0}
    counts = {split: values | none for split, values in metadata["counts"].items()}
    for split, shard in _all(plan):
        part = json.loads(_part(folder, split, shard).read_text())
        digest.update(bytes.fromhex(part["sha256"]))
        found |= {b["image_id"]: b["why"] for b in part["bad"]}
        for name in none:
            counts[split][name] += part[name]
    for split, values in counts.items():
        if not values["images"]:
            why = next(iter(found.values()))
            raise UserError(
                f"none of the images of {split} can be read ({why}); mend them, and "
                f"remove {folder} before the next run"
            )
    if found:
        lines = [json.dumps({"image_id": i, "why": w}) + "\n" for i, w in found.items()]
        (folder / "set" / LEFT_OUT).write_text("".join(lines))
    extras(folder / "set")
    values = dict(metadata) | {"counts": counts, "left_out": len(found)}
    values |= {"images_sha256": digest.hexdigest(), "fingerprint": plan.fingerprint}
    shards.finish(list(plan.sets(folder).values()), values)
