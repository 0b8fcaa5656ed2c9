"""The folder of a run: made, or found to be of a run with the same config."""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from jax.experimental import multihost_utils

from unipt_jax.errors import UserError
from unipt_jax.files import partial_of


def write_json(file: epath.Path, value: Any) -> None:
    """Writes a file whole, or not at all."""
    write_text(file, json.dumps(value, indent=2))


def write_text(file: epath.Path, text: str) -> None:
    """Writes a file whole, or not at all; of several processes the last one's stays."""
    partial = partial_of(file)
    try:
        partial.write_text(text)
        partial.replace(file)
    except (Exception, KeyboardInterrupt):
        partial.unlink(missing_ok=True)
        raise


def open_workdir(
    config: Any, workdir: str | os.PathLike, *, harmless: Sequence[str]
) -> epath.Path:
    """Makes the folder and its config.json, or checks that it is of the same config.

    harmless: fields (or sections) that may have changed since. Raises UserError where
    another one has, and where not all processes see one folder.
    """
    folder = epath.Path(workdir)
    file = folder / "config.json"
    wanted = json.loads(config.to_json_best_effort())
    if file.exists():
        check_same(json.loads(file.read_text()), wanted, file, harmless=harmless)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir={folder} is a file; give a folder, or a new name")
    if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(file, wanted)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("workdir")
        if not file.exists():
            raise UserError(
                f"process {jax.process_index()} does not see {file}; --workdir must be "
                "one folder that all processes share"
            )
    return folder


def check_same(
    before: Mapping, now: Mapping, file: epath.Path, *, harmless: Sequence[str] = ()
) -> None:
    """Raises UserError with all that differs between two configs but the harmless."""

    def flat(values: Mapping, prefix: str = "") -> dict[str, Any]:
        out = {}
        for key, value in values.items():
            path = f"{prefix}{key}"
            nested = isinstance(value, dict)
            out |= flat(value, f"{path}.") if nested else {path: value}
        return out

    old, new = flat(before), flat(now)
    differ = [
        f"{key}: {old.get(key)!r} there, {new.get(key)!r} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in harmless)
    ]
    if differ:
        raise UserError(
            f"{file} is of a run with another config ({'; '.join(differ)}); use another "
            "--workdir, or the same config"
        )
