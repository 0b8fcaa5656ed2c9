"""How much does preparing a set cost beyond the pictures themselves?

    python -m benchmarks.prepare --images 100000 --save

The same JPEG files, 600x250 and each different from all others, are brought to 384x128 by
`data_prep.build luperson` and by as many bare processes, which read a file, decode, resize
(PIL, bicubic), encode, and write nothing. They take turns over parts of the files; `ratio`
is the median of the parts', ours timed from its start to its end. Then a build of all files
is compared, to the byte, with one that is killed twice on its way. The bar is 0.9 of the
bare speed, and 1.5 GiB.
"""

import argparse
import hashlib
import io
import multiprocessing
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from PIL import Image

from benchmarks import pictures, report
from data_prep import workers

DIFFERENT = 1_000  # pictures that are drawn; the others are these with another comment
QUALITY = 95  # `data_prep.build`'s own


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=workers.cores())
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--stored", type=pictures.size, default=(600, 250))
    parser.add_argument("--size", type=pictures.size, default=(384, 128))
    parser.add_argument("--save", action="store_true", help="keep the figures")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report.finish(compare(Path(name), args), save=args.save)


def compare(folder: Path, args: argparse.Namespace) -> dict:
    """Draws, times, kills and compares."""
    report.progress(f"drawing {args.images:,} files of {args.stored}")
    files = copies(folder / "raw", args.images, args.stored)
    kilobytes = sum(file.stat().st_size for file in files) / len(files) / 1000
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    for number, part in enumerate(sorted((folder / "raw").iterdir())):
        theirs = [file for file in files if part in file.parents]
        seconds["bare"].append(bare(theirs, args) / len(theirs))
        begin = time.perf_counter()
        build(part, folder / f"out{number}", args)
        seconds["ours"].append((time.perf_counter() - begin) / len(theirs))
        shutil.rmtree(folder / f"out{number}")
        speeds = ", ".join(f"{k} {1 / v[-1]:.1f}" for k, v in seconds.items())
        report.progress(f"part {number}: images/s: {speeds}")
    begin = time.perf_counter()
    peak = build(folder / "raw", folder / "out", args)
    whole = time.perf_counter() - begin
    report.progress(f"all: {len(files) / whole:.1f} images/s, {peak:.0f} MiB at most")
    digest = digests(folder / "out")
    size = sum(file.stat().st_size for file in (folder / "out").iterdir())
    shutil.rmtree(folder / "out")  # the same path: it is in nothing that is written
    kills = killed(folder / "raw", folder / "out", args, whole)
    ratios = [b / o for b, o in zip(seconds["bare"], seconds["ours"], strict=True)]
    return {
        "benchmark": "prepare",
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "images_per_second": {
            name: round(1 / median(values), 1) for name, values in seconds.items()
        },
        "images_per_second_all": round(len(files) / whole, 1),
        "peak_mib": round(peak),
        "kills": kills,
        "identical": digests(folder / "out") == digest,
        "images": len(files),
        "workers": args.workers,
        "kilobytes_an_image": round(kilobytes, 1),
        "kilobytes_stored": round(size / len(files) / 1000, 1),
        "from": args.stored,
        "to": args.size,
        "quality": QUALITY,
    }


def copies(folder: Path, count: int, shape: tuple[int, int]) -> list[Path]:
    """So many JPEG files in four parts, in folders of 1,000; no two are the same."""
    with tempfile.TemporaryDirectory() as name:
        drawn, _ = pictures.draw_set(Path(name), min(count, DIFFERENT), shape)
        encoded = [file.read_bytes() for file in drawn]
    files = []
    for index in range(count):
        file = folder / f"part{4 * index // count}" / f"{index // 1000:04d}"
        file.mkdir(parents=True, exist_ok=True)
        file /= f"{index:08d}.jpg"
        comment = b"\xff\xfe\x00\x0a%08d" % index  # marker, length, text
        start, rest = encoded[index % DIFFERENT][:2], encoded[index % DIFFERENT][2:]
        file.write_bytes(start + comment + rest)
        files.append(file)
    return files


def one(work: tuple[str, tuple[int, int]]) -> int:
    """A file decoded, resized and encoded; the number of bytes it came to."""
    file, (height, width) = work
    with open(file, "rb") as opened:  # at once: PIL would read it bit by bit
        encoded = opened.read()
    with Image.open(io.BytesIO(encoded)) as image:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return len(out.getvalue())


def bare(files: Sequence[Path], args: argparse.Namespace) -> float:
    """Seconds that so many bare processes take for the files, once they are started."""
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        pool.map(one, [(str(file), args.size) for file in files[: 8 * args.workers]])
        begin = time.perf_counter()
        jobs = ((str(file), args.size) for file in files)
        for _ in pool.imap_unordered(one, jobs, chunksize=256):
            pass
        return time.perf_counter() - begin


def start(raw: Path, out: Path, args: argparse.Namespace) -> subprocess.Popen:
    """The build, in a process of its own."""
    command = [sys.executable, "-m", "data_prep.build", "luperson", "--raw", str(raw)]
    command += ["--out", str(out), "--workers", str(args.workers)]
    command += ["--height", str(args.size[0]), "--width", str(args.size[1])]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def build(raw: Path, out: Path, args: argparse.Namespace) -> float:
    """Builds the set; the most memory that its processes had, in MiB."""
    process, peak = start(raw, out, args), [0.0]

    def watch() -> None:
        while process.poll() is None:
            peak[0] = max(peak[0], memory(process.pid))
            time.sleep(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    code = process.wait()
    watcher.join()
    if code:
        raise SystemExit(f"the build ended with {code}")
    return peak[0]


def memory(parent: int) -> float:
    """MiB of a process and its children, shared pages counted once (Linux's PSS)."""
    total, waiting = 0, [parent]
    while waiting:
        pid = waiting.pop()
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except OSError:  # it has ended
            continue
        line = next(line for line in rollup.splitlines() if line.startswith("Pss:"))
        total += int(line.split()[1])
    return total / 1024


def killed(raw: Path, out: Path, args: argparse.Namespace, seconds: float) -> int:
    """Builds the set, killed on the way; how many times it was really killed."""
    kills = 0
    for _ in range(args.kills):
        process = start(raw, out, args)
        try:
            process.wait(seconds / (args.kills + 1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        done = len(list(out.with_name("out.partial").glob("set/*-of-*[0-9]")))
        report.progress(f"killed after {done} shards were done")
    build(raw, out, args)
    return kills


def digests(folder: Path) -> dict[str, str]:
    """Every file and what it holds."""
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


if __name__ == "__main__":
    main()
