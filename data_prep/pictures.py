"""Unpacks a record set: a split in, a folder of picture files and a captions.csv out.

python -m data_prep.pictures --records data/synthetic --split test --out FOLDER

`python -m data_prep.build folder --raw FOLDER` reads such a folder back.
"""

import argparse
import csv
import os
import pathlib
import shutil
import sys
from collections.abc import Sequence

from tqdm import tqdm

from data_prep import folder, raw
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records
from unipt_jax.errors import UserError, explain_os_error

SUFFIXES = {b"\xff\xd8\xff": (".jpg", ".jpeg"), b"\x89PNG": (".png",)}
COLUMNS = ("path", "caption", "person_id", "split")


def unpack(records: str | os.PathLike, split: str, out: str | os.PathLike) -> int:
    """Writes each picture, unchanged, under its id; gives their number.

    A name of another kind of file gets .jpg or .png at its end. captions.csv has a row
    for each caption, if there is any. `out` appears when all of it is written.
    Raises UserError where `out` is there, there is no such split, a record is damaged,
    or an id is no name of a file below a folder.
    """
    source, out = Records(records, split, PersonRecord), pathlib.Path(out)
    if os.path.lexists(out):
        raise UserError(f"{out} exists already; remove it, or give another --out")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a killed run left behind
    rows = []
    try:
        partial.mkdir(parents=True)
        for i in tqdm(range(len(source)), desc=f"unpacking {split}", unit=" pictures"):
            record = source[i]
            name = _name(record, f"record {i} of {records}")
            file = partial / name
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "xb") as picture:
                picture.write(record.image)
            person = "" if record.person_id == UNKNOWN else record.person_id
            rows += [(name, caption, person, split) for caption in record.captions]
        if rows:
            with open(
                partial / folder.FILES[0], "w", encoding="utf-8", newline=""
            ) as file:
                csv.writer(file).writerows([COLUMNS, *rows])
        partial.rename(out)
    except (FileExistsError, IsADirectoryError) as error:
        raise UserError(
            f"two pictures of {records} would be the file {error.filename}; their ids "
            "are no names of files"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(source)


def _name(record: PersonRecord, where: str) -> str:
    """A picture's path below the folder."""
    known = [
        names for start, names in SUFFIXES.items() if record.image.startswith(start)
    ]
    if not known:
        raise UserError(
            f"{where} holds neither a JPEG nor a PNG: prepare the set again"
        )
    name = raw.inside(record.image_id, where)
    return name if name.lower().endswith(known[0]) else name + known[0][0]


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.pictures",
        description="Unpacks the pictures of a record set's split into a folder.",
    )
    parser.add_argument("--records", required=True, help="the folder of the set")
    parser.add_argument("--split", default="test", help="test unless told otherwise")
    parser.add_argument("--out", required=True, help="the folder to make")
    args = parser.parse_args(argv)
    try:
        places = [os.path.expanduser(path) for path in (args.records, args.out)]
        count = unpack(places[0], args.split, places[1])
        print(f"{args.out}: {count} pictures")
        return 0
    except UserError as error:
        said = str(error)
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    except OSError as error:
        said = explain_os_error(error)
        if said is None:
            raise
    print(f"error: {raw.printable(said)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
