"""What a command line names: `a,b=runs/x-seed*` in, systems and sets to evaluate out.

A system is a trained model, or several that differ in their seed. All of it is looked
at before anything is computed, so that a slip in the last name costs no hour.
"""

import dataclasses
import functools
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from flax import traverse_util

from unipt_jax import encoder as encoders
from unipt_jax import sources
from unipt_jax.checkpoint import Checkpoints
from unipt_jax.clip_config import clip_section
from unipt_jax.data import records, tokenizers
from unipt_jax.errors import UserError

MAGIC = re.compile(r"[*?\[]")
OWN = ("seed", "source")  # fields in which the runs of a system may well differ
# Of these too, but not in whether they are given: a seed's run starts from a seed's run.
NAMED = ("init.model", "init.image", "init.text", "tokenizer")
MANY = 8  # differing fields that are named


@dataclasses.dataclass(frozen=True)
class System:
    """A name, and the models that it stands for: one, or one for each seed.

    notes: sentences on what several differ in beside their seeds.
    """

    name: str
    models: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read_systems(text: str) -> tuple[System, ...]:
    """The systems that `config.model` names.

    Names stand between commas, `NAME=` in front of one calls it so, and a pattern
    (`*`, `?`, `[..]`) is one system with a model for each run or export that it
    matches. What exists as it is written is never split and is no pattern.
    Raises UserError where there is none, a pattern matches none, or two are the same.
    """
    parts = _split(text)
    if not parts:
        raise UserError(
            "nothing to evaluate: give a run directory with --config.model=DIR"
        )
    named = [_named(part) for part in parts]
    given = [model for _, model in named]
    for model in given:
        if given.count(model) > 1:
            raise UserError(f"config.model names '{model}' twice; leave one out")
    called = _distinct([name or _last(model) for name, model in named], given)
    systems = zip(called, map(_models, given), strict=True)
    return tuple(System(name, models, _notes(models)) for name, models in systems)


def read_sets(text: str, split: str) -> tuple[tuple[str, str], ...]:
    """The folders and splits that `config.data.records` names.

    Names stand between commas; `:SPLIT` behind one takes another split than `split`.
    Raises UserError where there is none, one has no such split, or two are the same.
    """
    found = []
    for part in _split(text):
        folder, chosen = part, split
        before, colon, after = part.rpartition(":")
        if colon and "/" not in after and not _exists(part):
            folder, chosen = before, after
        known = records.splits(folder)
        if chosen not in known:
            raise UserError(
                f"{folder} has no split '{chosen}'; it has {', '.join(sorted(known))}"
            )
        if (folder, chosen) in found:
            raise UserError(
                f"config.data.records names split '{chosen}' of {folder} twice; leave "
                "one out"
            )
        found.append((folder, chosen))
    if not found:
        raise UserError(
            "nothing to evaluate on: give a record set with --config.data.records=DIR"
        )
    return tuple(found)


def set_names(sets: Sequence[tuple[str, str]]) -> list[str]:
    """`FOLDER/SPLIT` for each; the whole path where two folders are named alike."""
    short = [f"{epath.Path(folder).name}/{split}" for folder, split in sets]
    return _distinct(short, [f"{folder}/{split}" for folder, split in sets])


def check(model: str, checkpoint: str) -> str:
    """Looks whether a model can be opened, and says what it is: run, export or clip.

    Its weights are not read. Raises UserError as `encoder.load` does.
    """
    folder = epath.Path(os.path.expanduser(model))
    if encoders.is_run(folder):
        tokenizers.load(folder / "tokenizer")
        _check_checkpoint(folder, checkpoint)
        return "run"
    if encoders.is_export(folder):
        tokenizers.load(folder)
        return "export"
    encoders.check_weights(folder)
    clip_section(sources.open_source(model), "")
    return "clip"


def selection_folder(model: str) -> str | None:
    """The record set on which a run, or the run of an export, chose its checkpoint.

    None where nobody knows.
    """
    file = epath.Path(os.path.expanduser(model)) / "config.json"
    if not encoders.is_run(file.parent) and not encoders.is_export(file.parent):
        return None
    return encoders.selection_records(json.loads(file.read_text())) or None


def same_folder(a: str, b: str) -> bool:
    """Whether two names are of one folder."""
    a, b = (os.path.realpath(os.path.expanduser(folder)) for folder in (a, b))
    return a == b


def _check_checkpoint(folder: epath.Path, checkpoint: str) -> None:
    checkpoints = Checkpoints(folder / "checkpoints", read_only=True)
    try:
        named = {"best": checkpoints.best(), "last": checkpoints.latest()}
    finally:
        checkpoints.close()
    step = int(checkpoint) if checkpoint.isdigit() else named.get(checkpoint)
    if step is None or not (folder / "checkpoints" / str(step)).exists():
        raise UserError(f"{folder} has no checkpoint '{checkpoint}' yet")


@functools.cache
def _exists(path: str) -> bool:
    return epath.Path(os.path.expanduser(path)).exists()


def _split(text: str) -> list[str]:
    """At the commas, but for those within something that exists."""
    pieces, parts = text.split(","), []
    while pieces:
        for count in range(len(pieces), 0, -1):
            part = ",".join(pieces[:count]).strip()
            if count == 1 or _exists(_named(part)[1]):
                break
        parts += [part] if part else []
        pieces = pieces[count:]
    return parts


def _named(part: str) -> tuple[str, str]:
    """`NAME=MODEL` -> both; the name is "" where there is none."""
    name, _, model = part.partition("=")
    name, model = name.strip(), model.strip()
    if not name or not model or "/" in name or _exists(part):
        return "", part
    return name, model


def _last(path: str) -> str:
    return epath.Path(os.path.expanduser(path)).name or path


def _distinct(names: Sequence[str], paths: Sequence[str]) -> list[str]:
    """The names, but the paths for those that are not alone."""
    return [
        path if names.count(name) > 1 else name
        for name, path in zip(names, paths, strict=True)
    ]


def _models(model: str) -> tuple[str, ...]:
    """The models that a pattern matches, in order; what is no pattern as it is."""
    if not MAGIC.search(model) or _exists(model):
        return (model,)
    parts = epath.Path(os.path.expanduser(model)).parts
    plain = next(i for i, part in enumerate(parts) if MAGIC.search(part))
    root = epath.Path(*parts[:plain]) if plain else epath.Path()
    matched = sorted(root.glob("/".join(parts[plain:]))) if root.exists() else []
    found = [f for f in matched if encoders.is_run(f) or encoders.is_export(f)]
    if not found:
        what = f"{len(matched)} names, none a run directory or an export"
        raise UserError(
            f"config.model '{model}' matches {what if matched else 'nothing'}; give "
            "the --workdir of a training run, or a pattern that several of them match"
        )
    return tuple(str(folder) for folder in found)


def _notes(models: Sequence[str]) -> tuple[str, ...]:
    """What must be known of a mean over these runs; nothing of a single one."""
    if len(models) < 2:
        return ()
    folders = [epath.Path(os.path.expanduser(model)) for model in models]
    names = _distinct([folder.name for folder in folders], models)
    files = [json.loads((folder / "config.json").read_text()) for folder in folders]
    flat = [traverse_util.flatten_dict(content, sep=".") for content in files]
    configs = dict(zip(names, flat, strict=True))
    steps = dict(zip(names, map(_last_step, folders), strict=True))
    return (*_differing(configs), *_seeds(configs), *_unfinished(configs, steps))


def _by_value(values: Mapping[str, Any]) -> dict[str, str]:
    """Run -> value turned round: value as text -> the runs that have it, as text."""
    runs: dict[str, list[str]] = {}
    for name, value in values.items():
        runs.setdefault(json.dumps(value), []).append(name)
    return {value: ", ".join(names) for value, names in runs.items()}


def _differing(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence on the fields that all runs have, but not with one value."""
    shared = set.intersection(*map(set, configs.values())) - set(OWN)
    said = []
    for field in sorted(shared):
        values = {name: config[field] for name, config in configs.items()}
        if field in NAMED:
            values = {n: "given" if value else "" for n, value in values.items()}
        runs = _by_value(values)
        if len(runs) > 1:
            each = " and ".join(f"{value} ({names})" for value, names in runs.items())
            said.append(f"{field} {each}")
    more = [f"{len(said) - MANY} more fields"] if len(said) > MANY else []
    shown = "; ".join(said[:MANY] + more)
    return [f"the runs differ in more than their seeds: {shown}"] if said else []


def _seeds(configs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each seed that several runs have."""
    seeds = {name: c["seed"] for name, c in configs.items() if "seed" in c}
    return [
        f"{names} have the same seed, {seed}: the spread is not one over seeds"
        for seed, names in _by_value(seeds).items()
        if list(seeds.values()).count(json.loads(seed)) > 1
    ]


def _unfinished(
    configs: Mapping[str, Mapping[str, Any]], steps: Mapping[str, int]
) -> list[str]:
    """A sentence for each run whose last checkpoint comes before the end."""
    said, furthest = [], max(steps.values())
    for name, step in steps.items():
        whole = configs[name].get("steps")
        last = f"its last checkpoint is of step {step}"
        if whole and 0 < step < whole:
            said.append(f"{name} is unfinished: {last}, of {whole}")
        elif not whole and 0 < step < furthest:  # its epochs do not say how many
            said.append(f"{name} may be unfinished: {last}, another's of {furthest}")
    return said


def _last_step(folder: epath.Path) -> int:
    """The step of a run's last whole checkpoint; 0 where it has none."""
    saved = (folder / "checkpoints").glob("[0-9]*")
    return max((int(path.name) for path in saved if path.name.isdigit()), default=0)
