"""Who races: the paper's task, our pre-training step, and PyTorch's ways to take it."""

import dataclasses
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType

from benchmarks import report
from configs import pretrain
from unipt_jax import attention, flops, host, loop, objectives, sharding
from unipt_jax.data import pipeline
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

TOWERS = ("vit_b16", "deit_s16")
CAPTION = (20, 45)  # tokens of a pseudo caption, the shortest and the longest
LOSSES = ("contrastive", "mlm")
TOTAL = 1_000  # steps of the schedule; a race sees the first few


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The ids that masking must know, and how many there are."""

    vocabulary: int
    pad: int
    cls: int
    sep: int
    mask: int


BERT = Tokens(30_522, pad=0, cls=101, sep=102, mask=103)  # bert-base-uncased


def run(
    arguments: Callable[[list[str] | None], Any],
    compare: Callable[[Any], dict],
    argv: list[str] | None,
) -> None:
    """Reads a race's command line, runs it and prints its figures."""
    host.keep_memory()  # of both sides: it is one process
    try:
        args = arguments(argv)
        report.finish(compare(args), save=args.save)
    except UserError as error:
        raise SystemExit(str(error)) from None


def paper(tower: str, batch: int, dtype: str):
    """The paper's pre-training with that image tower, batch and precision."""
    config = pretrain.get_config(f"{tower},paper").unlock()
    config.batch_size = batch
    config.model.dtype = dtype
    longest = config.data.lengths[-1]
    chosen = attention.of_towers(config.model, batch=batch, longest=longest)
    for name, (implementation, _) in chosen.items():  # as a run's first start does
        config.model[name].attention = implementation
    return config.lock()


def on_gpu() -> bool:
    """Whether JAX computes on a GPU; PyTorch then must, too."""
    return jax.devices()[0].platform == "gpu"


def limit_threads(threads: int) -> int:
    """Binds the process to so many cores, which is what XLA counts; 0: all of them."""
    cores = sorted(os.sched_getaffinity(0))
    if threads > len(cores):
        raise UserError(f"--threads {threads}, but this process has {len(cores)} cores")
    threads = threads or len(cores)
    os.sched_setaffinity(0, cores[:threads])
    return threads


def draw(
    batch: int,
    steps: int,
    lengths: tuple[int, ...],
    size: tuple[int, int],
    seed: int = 0,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """`steps` batches of noise: uint8 images (B, H, W, 3) and ids (B, L), int32.

    The same for every `lengths` that end alike, but for what texts are padded to.
    """
    rng = np.random.default_rng(seed)
    batches = []
    for _ in range(steps):
        images = rng.integers(0, 256, (batch, *size, 3), np.uint8)
        counts = rng.integers(CAPTION[0], CAPTION[1] + 1, batch)
        words = rng.integers(1_000, 30_000, (batch, max(lengths)))  # ids of whole words
        place = np.arange(max(lengths))
        ids = np.where(place < counts[:, None] - 1, words, BERT.pad)
        ids[:, 0] = BERT.cls
        ids[np.arange(batch), counts - 1] = BERT.sep
        length = pipeline.bucket(counts.max(), lengths)
        batches.append((images, ids[:, :length].astype(np.int32)))
    return batches


class Ours:
    """The model, its state on one device, and the step that `loop.fit` takes."""

    def __init__(self, config, tokens: Tokens = BERT) -> None:
        """config: of our pretrain job."""
        self.device = jax.devices()[0]
        self.mesh = jax.make_mesh(
            (1, 1),
            ("data", "fsdp"),
            devices=[self.device],
            axis_types=(AxisType.Auto,) * 2,
        )
        self.config = config
        self.model = build(config, tokens)
        objective = objectives.pretrain(
            self.model,
            weights=objectives.PretrainWeights(**config.loss),
            pixels=objectives.Pixels(**config.pixels),
            masked=objectives.Masking(tokens.mask, config.mlm.rate),
        )
        optimiser = loop.make_optimiser(config, TOTAL)
        self.state, shardings = loop.initial_state(
            self.model, optimiser, config.seed, self.mesh
        )
        self.update = loop.make_step(objective, optimiser, config.seed, shardings)

    def prepare(self, batch: tuple) -> dict[str, np.ndarray]:
        """A batch of `draw` as our pipeline hands it over."""
        return {"image": batch[0], "tokens": batch[1]}

    def place(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the device."""
        size = self.config.batch_size
        return sharding.place_batch(batch, np.arange(size), size, self.mesh)

    def step(self, batch: dict[str, np.ndarray], wait: bool) -> float | None:
        """One update from a batch on the host; its loss, if waited for."""
        self.state, metrics = self.update(self.state, self.place(batch))
        if not wait:
            return None
        jax.block_until_ready(self.state)
        return float(metrics["loss"])

    def peak_gib(self) -> float | None:
        """The most memory that the device held for JAX so far; None on a CPU."""
        peak = (self.device.memory_stats() or {}).get("peak_bytes_in_use")
        return peak and round(peak / 2**30, 2)


def build(config, tokens: Tokens) -> unipt.DualEncoder:
    """The model of a pretrain config, without weights."""
    ids = {name: getattr(tokens, name) for name in ("vocabulary", "pad", "cls", "sep")}
    return unipt.build(config.model.to_dict(), **ids)


def theirs(config, kind: str, threads: int, compiled: str, tokens: Tokens = BERT):
    """One of the references of `reference_torch`. compiled: torch.compile's mode."""
    from benchmarks import reference_torch  # only here: "ours" alone needs no PyTorch

    return reference_torch.Reference(
        config,
        kind,
        tokens,
        total=TOTAL,
        device="cuda" if on_gpu() else "cpu",
        threads=threads,
        compiled=compiled,
    )


def utilisation(config, lengths: list[np.ndarray], seconds: dict[str, float]) -> dict:
    """TFLOP/s of each contestant and, where the device's peak is known, MFU in percent.

    lengths: (B,) real tokens of the texts of each step. seconds: of a step. Operations
    are the model's own (`flops.step`), whatever a contestant computes beyond them.
    """
    model = build(config, BERT)
    of_steps = [
        flops.step(model, n, losses=LOSSES, mlm_rate=config.mlm.rate) for n in lengths
    ]
    work = float(np.mean(of_steps))
    peak = flops.device_peak(jax.devices()[0].device_kind, config.model.dtype)
    figures: dict[str, Any] = {
        "tflops_a_step": round(work / 1e12, 4),
        "tflops_per_second": {k: round(work / s / 1e12, 4) for k, s in seconds.items()},
    }
    if peak:
        share = {k: round(100 * work / s / peak, 2) for k, s in seconds.items()}
        figures |= {"mfu": share, "peak_tflops": peak / 1e12}
    return figures


def waited(step: Callable, batches: list) -> None:
    """One step a batch; waits for the last alone, as a training loop would."""
    for batch in batches[:-1]:
        step(batch, wait=False)
    step(batches[-1], wait=True)


def release() -> None:
    """Gives the memory of contestants that are gone to those that come."""
    gc.collect()
    jax.clear_caches()
    if on_gpu() and "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.compiler.reset()
        torch.cuda.empty_cache()


def tell(sentence: str) -> None:
    """Says on stderr what runs, with the memory that the process holds."""
    report.progress(f"{sentence} ({report.peak_rss_mb() / 1024:.1f} GiB so far)")
