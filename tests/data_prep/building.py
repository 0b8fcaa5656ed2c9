"""Runs `data_prep.build`, here or in a process of its own, on pictures made for it."""

import contextlib
import csv
import io
import json
import os
import pathlib
import subprocess
import sys
import time

from PIL import Image

from data_prep import build

ROOT = pathlib.Path(__file__).parents[2]
HEADER = ["path", "caption", "person_id", "split"]
SLOW = pathlib.Path(__file__).with_name("slow_build.py")


def picture(path, value=0, mode="RGB", size=(6, 12), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, 10, 20)).convert(mode).save(path, **options)


def write(raw, rows, header=HEADER, encoding="utf-8", file="captions.csv"):
    """Captions with these rows, and a picture for each path that has none."""
    raw.mkdir(parents=True, exist_ok=True)
    with (raw / file).open("w", newline="", encoding=encoding) as opened:
        if file.endswith(".csv"):
            csv.writer(opened).writerows([header, *rows])
        else:
            objects = [dict(zip(header, row, strict=False)) for row in rows]
            opened.writelines(json.dumps(values) + "\n" for values in objects)
    for value, row in enumerate(rows):
        if not (raw / row[0]).exists():
            picture(raw / row[0], value)


def crops(folder, count=60):
    """A tree as LUPerson's: so many pictures in a few folders, all different."""
    for i in range(count):
        picture(folder / f"part{i % 3}" / f"{i:03}.jpg", 4 * i, size=(6 + i % 2, 12))
    return folder


def command(raw, out, *options):
    """A build of such a tree, in shards of seven."""
    common = ["luperson", "--raw", raw, "--out", out, "--shard-images", 7]
    return [*common, *options]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def shards_in(out):
    """How many are written, while the set is not there yet."""
    found = out.with_name(f"{out.name}.partial").glob("set/*.array_record*")
    return sum(not file.name.endswith(".partial") for file in found)


def wait_for(process, condition):
    end = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < end, "the process neither got there nor ended"
        time.sleep(0.002)


def here(*args):
    """Exit code, what was printed, and what was said on stderr but for progress."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = build.main([str(arg) for arg in args])
    lines = [line for line in err.getvalue().split("\n") if "\r" not in line]
    return code, out.getvalue(), "\n".join(lines)


def refusal(*args):
    """The one sentence with which a command is refused."""
    code, _, err = here(*args)
    assert code == 1, err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    return err.removeprefix("error: ").removesuffix("\n")


def start(*args, slow=False, program="", **options):
    """The command in a process of its own. slow: see `slow_build.py`. program: other
    code to run."""
    code = ["-c", program] if program else ["-m", "data_prep.build"]
    code = [SLOW] if slow else code
    return subprocess.Popen(
        [sys.executable, *code, *map(str, args)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TQDM_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def there(*args, **options):
    """As `here`, in a process of its own."""
    process = start(*args, **options)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def tree(path):
    """Everything below a folder, with its content."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in files}
