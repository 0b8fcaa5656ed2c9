"""Prepares data sets: what people have on disk in, record folders out.

python -m data_prep.build SET --raw DIR --out DIR [--check] [--height 384 --width 128]
python -m data_prep.build SET --out DIR --peek page.html
"""

import argparse
import hashlib
import importlib.metadata
import os
import pathlib
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from data_prep import captions, checks, folder, identities, peek, prepare, synthetic
from data_prep import unlabelled as pretrain
from data_prep.entries import PRETRAIN, Survey, count
from data_prep.raw import Raw, printable
from unipt_jax.data import records, tokenizers
from unipt_jax.data.records import UNKNOWN
from unipt_jax.errors import UserError, explain_os_error

Reader = Callable[[argparse.Namespace], Survey]


def _with_identities(name: str) -> Reader:
    def read(args: argparse.Namespace) -> Survey:
        return identities.read(
            identities.KINDS[name],
            args.raw,
            annotation=args.annotations,
            splits=args.splits,
        )

    return read


def _captioned(reader: Callable[..., Survey]) -> Reader:
    return lambda args: reader(args.raw, annotation=args.annotations)


READERS: dict[str, Reader] = {
    **{name: _with_identities(name) for name in identities.KINDS},
    "luperson": lambda args: pretrain.luperson(args.raw),
    "luperson_t": _captioned(pretrain.luperson_t),
    "luperson_mllm": _captioned(pretrain.luperson_mllm),
    "synth_pedes": _captioned(pretrain.synth_pedes),
    "mals": _captioned(pretrain.mals),
    "folder": _captioned(folder.read),
}
SETS = (*READERS, "synthetic")


def _synthetic(args: argparse.Namespace) -> None:
    others = DECISIVE | {"check": False, "tokenizer": "", "beam": None}
    for name in others:
        if name not in ("height", "width") and getattr(args, name) != others[name]:
            name = name.replace("_", "-")
            raise UserError(f"synthetic persons are drawn: leave --{name} out")
    _check_numbers(args)
    out = pathlib.Path(args.out or "data/synthetic")
    wanted = {"identities": args.identities, "seed": args.seed}
    wanted |= {"height": args.height or 192, "width": args.width or 64}
    if out.exists():
        there = records.metadata(out)
        differ = [k for k, v in wanted.items() if there.get(k) != v]
        if differ:
            raise UserError(
                f"{out} holds another synthetic set ({differ[0]}={there.get(differ[0])}"
                f", asked for {wanted[differ[0]]}); remove it or give another --out"
            )
        print(f"{out} is there already, as asked for: {records.splits(out)}")
        return
    if (left := prepare.partial_of(out) / "plan.json").exists():
        raise UserError(
            f"{left.parent} was left by a build of another set; remove it, or give "
            "another --out"
        )
    synthetic.build(out, workers=args.workers, **wanted)
    print(f"{out}: {records.splits(out)}")


def command(args: argparse.Namespace) -> str:
    """The command line, as far as it decides what is written."""
    words = ["python", "-m", "data_prep.build", args.set]
    for name, default in DECISIVE.items():
        value = getattr(args, name)
        if value == default:
            continue
        words.append(f"--{name.replace('_', '-')}")
        words += [] if value is True else [str(value)]
    return shlex.join(words)


DECISIVE = {
    "raw": None,
    "annotations": "",
    "splits": "",
    "records": "",
    "height": None,
    "width": None,
    "quality": 95,
    "shard_images": 0,
    "vocabulary": 0,
    "allow_missing": False,
}


def _prepare(args: argparse.Namespace) -> None:
    """Reads, checks, and writes a set, unless that was all that was asked for."""
    options = _options(args)
    if not args.check and _there_already(args):
        return
    run = None
    if args.beam is not None:
        from data_prep import beam  # an extra

        run = beam.runner(args.beam)
    survey = READERS[args.set](args)
    if args.records:
        captions.write(survey, args.records, args.out, _origin(survey, args))
        print(f"{args.out}: {records.splits(args.out)}")
        return
    dropped = _checked(survey, args)
    if args.check:
        print("nothing stands in the way of training")
        return

    tokenizer = _trained(survey, args.vocabulary) if args.vocabulary else None

    def extras(folder) -> None:
        if tokenizer:
            tokenizer.save(folder / "tokenizer")

    prepare.write(
        survey,
        args.out,
        options=options,
        dropped=dropped,
        allow_missing=args.allow_missing,
        metadata=_metadata(survey, args, options, dropped),
        run=run,
        count=args.workers,
        extras=extras,
    )
    print(f"{args.out}: {records.splits(args.out)}")


def _trained(survey: Survey, size: int) -> tokenizers.Tokenizer:
    texts = [c for entry in survey.entries for c in entry.captions if c]
    if not texts:
        raise UserError("--vocabulary: there are no captions to train one on")
    return tokenizers.train(texts, size=size)


def _options(args: argparse.Namespace) -> prepare.Options:
    if not args.raw:
        raise UserError(f"no --raw: give the folder that holds {args.set}")
    if not args.out and not args.check:
        raise UserError(f"no --out: give the folder to write, such as data/{args.set}")
    if args.out and not pathlib.Path(args.out).name:
        raise UserError(f"--out {args.out} is no name; give one, as data/{args.set}")
    for name in ("raw", "out"):
        if "://" in (getattr(args, name) or ""):
            raise UserError(
                f"--{name} {getattr(args, name)}: a bucket is read and written here only "
                "where it is mounted; mount it, and give the folder"
            )
    raw = f"{os.path.realpath(args.raw)}/"
    if args.out and os.path.realpath(args.out).startswith(raw):
        raise UserError(
            f"--out {args.out} lies in --raw {args.raw}, whose files would then be read "
            "as the set's source; give a folder beside it"
        )
    if (args.height is None) != (args.width is None):
        raise UserError("--height and --width go together: give both, or neither")
    if args.check and args.records:
        raise UserError("--check looks at images, which --records is without; give one")
    if args.splits and args.set not in identities.KINDS:
        raise UserError(f"--splits: {args.set} has none to be given; leave it out")
    if args.annotations and args.set == "luperson":
        raise UserError("--annotations: luperson is pictures alone; leave it out")
    _check_numbers(args)
    size = None if args.height is None else (args.height, args.width)
    return prepare.Options(size, args.quality, args.shard_images)


def _check_numbers(args: argparse.Namespace) -> None:
    for name in ("workers", "text_length", "shard_images", "vocabulary"):
        value, least = getattr(args, name), name in ("workers", "text_length")
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: expected 1 or more")


def _there_already(args: argparse.Namespace) -> bool:
    """Whether the set is there, as asked for; another one in its place is refused."""
    out = pathlib.Path(args.out)
    if not out.exists():
        if out.is_symlink():
            raise UserError(f"{out} is a dead link; remove it, or give another --out")
        return False
    left = prepare.partial_of(out).exists()  # killed when all was there already
    if not args.resume and not left:
        raise UserError(
            f"{out} exists already; remove it, or give another --out (with --resume, a "
            "set of the same command that is there already is left as it is)"
        )
    there = records.metadata(out).get("command")
    if there != command(args):
        raise UserError(
            f"{out} holds another set, made by `{there}`; remove it, or give another "
            "--out"
        )
    if left:
        prepare.clear(out)
    print(f"{out} is there already, as asked for: {records.splits(out)}")
    return True


def _checked(survey: Survey, args: argparse.Namespace) -> dict[str, str]:
    """Prints what was found; gives the images to leave out, with reasons.

    Raises UserError where training would suffer.
    """
    by = ", ".join(survey.sources) or "its pictures alone"
    print(printable(f"{survey.name} in {survey.raw.name}, by {by}"))
    if survey.raw.starts:
        starts = survey.raw.starts.most_common()
        places = [f"{survey.raw.name}/{start} ({n:,})" for start, n in starts]
        print(printable(f"images lie in {checks.some(places)}"))
    print(checks.table(survey), flush=True)
    tokenizer = tokenizers.load(args.tokenizer) if args.tokenizer else None
    found = checks.without_pictures(survey, limit=args.text_length, tokenizer=tokenizer)
    dropped = {e.image_id: "missing" for e in survey.entries if e.place is None}
    trained = any(e.split != PRETRAIN for e in survey.entries)
    # Labels have no gaps: who has no image that can be read must be known before.
    if args.check or trained or (args.allow_missing and survey.identified):
        looks = checks.look_at_all(survey, args.workers)
        found += checks.of_images(survey.entries, looks)
        dropped |= {
            e.image_id: look.fault
            for e, look in zip(survey.entries, looks, strict=True)
            if look is not None and look.fault
        }
    if several := survey.raw.several:
        text = checks.counted(len(several), "image lies", "images lie")
        survey.notes.append(f"{text} in several places: {checks.some(several)}")
    for text in survey.notes:
        print(printable(f"note: {text}"))
    for finding in sorted(found, key=lambda f: f.weight != "note"):
        kind = "note" if finding.weight == "note" else "PROBLEM"
        print(printable(f"{kind}: {finding.text}"))
    print(end="", flush=True)
    lacks = sum(f.weight == "lack" for f in found)
    if faults := [f.text for f in found if f.weight == "fault"]:
        raise UserError(f"{survey.raw.name}: {faults[0]}")
    if lacks and len(dropped) == len(survey.entries):
        raise UserError(
            f"none of the images of {survey.name} ({len(dropped):,}) is in "
            f"{survey.raw.name} and can be read; give the folder that holds them"
            + ("" if survey.published else ", or, for captions alone, --records DIR")
        )
    if lacks and not args.allow_missing:
        raise UserError(
            f"{survey.raw.name}: {checks.counted(lacks, 'problem', 'problems')}, see above: training would suffer; "
            "mend them, or go on without what is missing with --allow-missing"
        )
    prepare.kept(survey, dropped)
    return dropped


def _origin(survey: Survey, args: argparse.Namespace) -> dict[str, Any]:
    """What any set's metadata says of where it comes from."""
    return {
        "set": survey.name,
        "command": command(args),
        "version": _version(),
        "notes": survey.notes,
        "sources": {_named(f, survey.raw): _described(f) for f in survey.sources},
    }


def _metadata(
    survey: Survey, args: argparse.Namespace, options: prepare.Options, dropped: dict
) -> dict[str, Any]:
    kept = [entry for entry in survey.entries if entry.image_id not in dropped]
    counts = {split: values._asdict() for split, values in count(kept).items()}
    for split in counts.keys() - {e.split for e in kept if e.person_id != UNKNOWN}:
        del counts[split]["identities"]
    out = _origin(survey, args) | {
        "counts": counts,
        "images": options.stored,
        "allow_missing": args.allow_missing,
    }
    if options.size:
        out |= {"height": options.size[0], "width": options.size[1]}
    if survey.published:
        said = survey.published.splits.items()
        out["published"] = {split: values._asdict() for split, values in said}
    return out


def _version() -> str:
    try:
        return importlib.metadata.version("unipt_jax")
    except importlib.metadata.PackageNotFoundError:  # run from a folder of sources
        return "unknown"


def _named(file: str, raw: Raw) -> str:
    """An annotation by its path below the raw folder, or its name where it is not."""
    below = file.removeprefix(f"{raw.name}/")
    return os.path.basename(file) if below == file else below


def _described(file: str) -> dict[str, Any]:
    with open(file, "rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
        return {"bytes": os.fstat(opened.fileno()).st_size, "sha256": digest}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        prog="python -m data_prep.build",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("set", choices=SETS, help="which data set")
    add("--raw", help="the folder that holds the source")
    add("--out", help="the folder to write; must not exist")
    add(
        "--check",
        action="store_true",
        help="read all, say what is amiss, write nothing",
    )
    add("--height", type=int, help="store images at this height, in pixels")
    add("--width", type=int, help="and this width; default: as they are")
    add("--quality", type=int, default=95, help="of JPEGs that are written anew")
    add("--workers", type=int, help="processes; default: all cores")
    add("--resume", action="store_true", help="be content if all is there already")
    add("--allow-missing", action="store_true", help="go on without what is missing")
    add("--annotations", default="", metavar="FILE", help="where it has another name")
    add("--splits", default="", metavar="FILE", help="JSON that gives images' splits")
    add(
        "--records", default="", metavar="DIR", help="write captions alone, of this set"
    )
    add("--vocabulary", type=int, default=0, metavar="N",
        help="train a tokenizer of at most N tokens on the captions")  # fmt: skip
    add("--tokenizer", default="", help="count the captions' tokens with this one")
    add("--text-length", type=int, default=100, help="tokens that a model reads")
    add("--shard-images", type=int, default=0, metavar="N", help="images in a file")
    add("--beam", metavar="OPTIONS", help='run on Apache Beam: "--runner=... ..."')
    add("--peek", metavar="PAGE", help="write a page on the set in --out")
    group = p.add_argument_group("synthetic")
    group.add_argument("--identities", type=int, default=250, help="persons in test")
    group.add_argument("--seed", type=int, default=0)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    for at in range(len(words) - 1, 0, -1):
        if words[at - 1] == "--beam" and "=" in words[at]:
            words[at - 1 : at + 1] = [f"--beam={words[at]}"]  # else taken for ours
    args = parser().parse_args(words)
    for name in ("raw", "out", "annotations", "splits", "records", "tokenizer", "peek"):
        if value := getattr(args, name):
            setattr(args, name, os.path.expanduser(value))
    try:
        if args.set == "synthetic" and not args.peek:
            _synthetic(args)
        elif args.raw or not args.peek:
            _prepare(args)
        if args.peek:
            peek.write(args.out or f"data/{args.set}", args.peek)
            print(f"{args.peek} is written: open it in a browser")
        return 0
    except UserError as error:
        said = str(error)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # what reads the answers has read enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        said = explain_os_error(error)
        if said is None:
            raise
    # Said when the error is gone, and with it the progress bars that it held open: they
    # would share the line.
    print(f"error: {printable(said)}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
