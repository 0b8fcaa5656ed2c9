"""How many images a second does our input pipeline give, beside a PyTorch DataLoader?

    python -m benchmarks.input --images 2000

The same JPEG files, of the training size and about 20 KB, go through ours (records, read
threads, batches of uint8 and tokens) and through what peers do (PIL, bicubic resize, flip,
normalised floats, worker processes), which is given its captions as tokens padded to 100
beforehand. Each side runs with every number of threads or workers, in turn, over whole
epochs. `ratio` is the best of ours, up to the batch that is handed to the device, over the
best of theirs; in `ratio_with_device` our flip and normalisation are counted too, on the
same cores where there is no accelerator. The bar is 2 for the first.
"""

import argparse
import functools
import random
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from benchmarks import pictures, report
from unipt_jax import host
from unipt_jax.data import pipeline, records, tokenizers, transforms
from unipt_jax.errors import UserError

try:
    import torch
except ImportError as error:
    raise SystemExit(
        f"this benchmark needs PyTorch ({error}); install it with pip install '.[torch]'"
    ) from error

LENGTHS = (32, 48, 64, 100)  # the paper's config; peers pad to the last
MEAN, STD = 0.5, 0.5
THREADS, WORKERS = (1, 2, 4), (0, 1, 2)


def main() -> None:
    host.keep_memory()  # as `unipt_jax.main` does; of both sides, it is one process
    parser = report.arguments(__doc__, repeats=3)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--images", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2, help="in a timing")
    parser.add_argument(
        "--size",
        type=pictures.size,
        default=(384, 128),
        help="HEIGHTxWIDTH of the batches",
    )
    parser.add_argument(
        "--stored",
        type=pictures.size,
        help="HEIGHTxWIDTH of the files, where it differs",
    )
    args = parser.parse_args()
    try:
        report.finish(compare(args), save=args.save)
    except UserError as error:
        raise SystemExit(str(error)) from None


def compare(args: argparse.Namespace) -> dict:
    """Writes the set, warms every reader up, and times epochs of each in turn."""
    stored = args.stored or args.size
    if args.images < args.batch:
        raise UserError(f"--images {args.images} is less than one --batch {args.batch}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report.progress(f"drawing {args.images} images of {stored[0]}x{stored[1]}")
        files, captions = pictures.draw_set(folder, args.images, stored)
        kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
        report.progress(f"{kilobytes:.1f} kB an image; writing the record set")
        write_records(folder / "records", files, captions)
        tokenizer = tokenizers.train(captions, size=2_000)
        batches = our_batches(folder, tokenizer, args)
        ours = {
            f"ours_{threads}_threads": our_epochs(batches, args, threads)
            for threads in THREADS
        }
        with_device = {
            f"ours_{threads}_threads_and_device": our_epochs(
                batches, args, threads, flip_and_normalise()
            )
            for threads in THREADS
        }
        tokens = padded(tokenizer, captions)
        theirs = {
            f"torch_{workers}_workers": their_epochs(files, tokens, args, workers)
            for workers in WORKERS
        }
        readers = ours | with_device | theirs
        for reader, run in readers.items():
            report.progress(f"warming up {reader}")
            run()
        times = report.alternate(readers, args.repeats)
    count = args.images // args.batch * args.batch * args.epochs
    speeds = {reader: round(count / median(times[reader])) for reader in times}
    best = [max(side, key=speeds.get) for side in (ours, with_device, theirs)]
    return {
        "benchmark": "input",
        "ratio": round(speeds[best[0]] / speeds[best[2]], 3),
        "ratio_with_device": round(speeds[best[1]] / speeds[best[2]], 3),
        "best": best,
        "images_per_second": speeds,
        "images": args.images,
        "kilobytes_an_image": round(kilobytes, 1),
        "batch": args.batch,
        "size": args.size,
        "stored": stored,
    }


def write_records(folder: Path, files: Sequence[Path], captions: Sequence[str]) -> None:
    """The files as a record set with the split "pretrain", one caption each."""
    rows = [
        records.PersonRecord(file.read_bytes(), file.stem, captions=(caption,))
        for file, caption in zip(files, captions, strict=True)
    ]
    records.write_set(folder, records.PersonRecord, {"pretrain": rows}, metadata={})


def our_batches(
    folder: Path, tokenizer: tokenizers.Tokenizer, args: argparse.Namespace
) -> pipeline.TrainBatches:
    """Our training stream."""
    return pipeline.TrainBatches(
        records.Records(folder / "records", "pretrain", records.PersonRecord),
        None,
        tokenizer,
        batch_size=args.batch,
        rows=np.arange(args.batch),
        size=args.size,
        lengths=LENGTHS,
        seed=0,
        progress=False,
    )


def flip_and_normalise() -> Callable[[int, dict, jax.Array], dict]:
    """What a training step does to a batch first: step, batch, memory -> batch."""
    key = jax.random.key(0)

    @functools.partial(jax.jit, donate_argnums=2, keep_unused=True)
    def prepare(key: jax.Array, batch: dict, memory: jax.Array) -> dict:
        images = transforms.augment(key, batch["image"], flips=True, pad=0)
        return batch | {"image": transforms.normalise(images, mean=MEAN, std=STD)}

    return lambda step, batch, memory: jax.block_until_ready(
        prepare(jax.random.fold_in(key, step), batch, memory)
    )


def our_epochs(
    batches: pipeline.TrainBatches,
    args: argparse.Namespace,
    threads: int,
    prepare: Callable[[int, dict, jax.Array], dict] | None = None,
) -> Callable[[], None]:
    """Epochs of our stream, with or without what the device does to each batch."""
    count = args.images // args.batch * args.epochs

    def run() -> None:
        # The last batch's memory takes the next one, as in a step: else it is the
        # kernel's handing out of pages that would be timed.
        memory = jnp.empty((args.batch, *args.size, 3), jnp.float32)
        stream = batches.from_step(0, threads=threads, buffer=4)
        for step in range(count):
            batch = next(stream)
            if prepare is not None:
                memory = prepare(step, batch, memory)["image"]
        stream.close()  # or it would read ahead into the others' time

    return run


def padded(tokenizer: tokenizers.Tokenizer, captions: Sequence[str]) -> np.ndarray:
    """(captions, 100) ids: peers pad all texts to one length."""
    ids, _ = tokenizer.encode(captions, LENGTHS[-1])
    out = np.full((len(ids), LENGTHS[-1]), tokenizer.pad, np.int64)
    for row, caption in zip(out, ids, strict=True):
        row[: len(caption)] = caption
    return out


class Pictures:
    """A map-style data set as peers write it, on PIL and torch alone."""

    def __init__(
        self, files: Sequence[Path], tokens: np.ndarray, shape: tuple[int, int]
    ) -> None:
        """tokens: (files, L) ids. shape: height and width of what is returned."""
        self.files, self.shape = [str(file) for file in files], shape
        self.tokens = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int):
        """(3, H, W) float in -1 .. 1 and (L,) ids, as torchvision's transforms give."""
        height, width = self.shape
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        pixels = pixels.float().div_(255).sub_(MEAN).div_(STD)
        return pixels, self.tokens[index]


def their_epochs(
    files: Sequence[Path], tokens: np.ndarray, args: argparse.Namespace, workers: int
) -> Callable[[], None]:
    """Epochs of PyTorch's DataLoader; its workers live on from epoch to epoch."""
    torch.set_num_threads(1)  # as in its workers: more only wait for each other here
    loader = torch.utils.data.DataLoader(
        Pictures(files, tokens, args.size),
        batch_size=args.batch,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context="forkserver" if workers else None,  # jax has threads
    )

    def run() -> None:
        for _ in range(args.epochs):
            for _batch in loader:
                pass

    return run


if __name__ == "__main__":
    main()
