"""Prepares data sets: what people have on disk in, record folders out.

python -m data_prep.build SET --raw DIR --out DIR [--check]
"""

import argparse
import pathlib
import sys
from collections.abc import Sequence

from data_prep import folder, synthetic
from unipt_jax.data import records
from unipt_jax.errors import UserError, explain_os_error


def _synthetic(args: argparse.Namespace) -> None:
    out = pathlib.Path(args.out or "data/synthetic")
    wanted = {
        name: getattr(args, name) for name in ("identities", "seed", "height", "width")
    }
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
    synthetic.build(out, workers=args.workers, **wanted)
    print(f"{out}: {records.splits(out)}")


def _folder(args: argparse.Namespace) -> None:
    if not args.raw:
        raise UserError("no --raw: give the folder that holds captions.csv")
    if args.check:
        folder.check(args.raw)
        return
    if not args.out:
        raise UserError("no --out: give the folder to write, such as data/mine")
    folder.build(args.raw, args.out, vocabulary=args.vocabulary)
    print(f"{args.out}: {records.splits(args.out)}")


SETS = {"synthetic": _synthetic, "folder": _folder}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m data_prep.build", description=__doc__)
    p.add_argument("set", choices=SETS, help="which data set")
    p.add_argument("--raw", help="the folder that holds the source")
    p.add_argument("--out", help="the folder to write; must not exist")
    p.add_argument("--check", action="store_true", help="read all, write nothing")
    group = p.add_argument_group("folder")
    group.add_argument(
        "--vocabulary",
        type=int,
        default=0,
        metavar="N",
        help="train a tokenizer of at most N tokens on the captions",
    )
    group = p.add_argument_group("synthetic")
    group.add_argument("--identities", type=int, default=250, help="persons in test")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument("--height", type=int, default=192, help="pixels")
    group.add_argument("--width", type=int, default=64, help="pixels")
    group.add_argument("--workers", type=int, help="processes; default: all cores")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """Does what the command line says; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        SETS[args.set](args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if (sentence := explain_os_error(error)) is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
