"""The training loop: an objective and batches in; a run directory filled, step by step."""

import dataclasses
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unipt_jax import encoder as encoders
from unipt_jax import (
    evaluate,
    flops,
    optim,
    ranking,
    report,
    sharding,
    start,
)
from unipt_jax.checkpoint import Checkpoints
from unipt_jax.data import pipeline
from unipt_jax.data.tokenizers import Tokenizer
from unipt_jax.errors import Stopped, UserError
from unipt_jax.models import unipt
from unipt_jax.objectives import Loss
from unipt_jax.optim import TrainState
from unipt_jax.profile import Profiler, window
from unipt_jax.transfer import Taken


def make_step(objective: Callable, optimiser: optim.Optimiser, seed: int, shardings):
    """The compiled update: (state, batch) -> (state, metrics). The state is donated."""

    def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
        key = jax.random.fold_in(jax.random.key(seed), state.step)
        grad = jax.value_and_grad(objective, has_aux=True)
        (loss, metrics), grads = grad(state.params, batch, key)
        grads = jax.lax.with_sharding_constraint(grads, shardings.params)
        state, numbers = optimiser.update(state, loss, grads)
        return state, {"loss": loss} | metrics | numbers

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))


def make_optimiser(config: Any, steps: int) -> optim.Optimiser:
    """The optimiser that the config describes, for a run of so many steps."""
    return optim.Optimiser(
        schedule=optim.make_schedule(
            peak=config.lr,
            warmup=math.ceil(config.warmup * steps),
            total=steps,
            decay=config.decay,
            drops=[round(drop / config.epochs * steps) for drop in config.drops],
            factor=config.drop_factor,
        ),
        betas=tuple(config.optimiser.betas),
        eps=config.optimiser.eps,
        weight_decay=config.optimiser.weight_decay,
        clip=config.optimiser.clip,
        groups=tuple(tuple(group) for group in config.optimiser.groups),
        decoupled=config.optimiser.decoupled,
    )


def initial_state(model, optimiser: optim.Optimiser, seed: int, mesh: Mesh):
    """A random state on the devices, and its shardings. The same on any mesh."""

    def init() -> TrainState:
        return optimiser.init(unipt.initialise(model, jax.random.key(seed)))

    shardings = sharding.shardings(jax.eval_shape(init), mesh)
    return jax.jit(init, out_shardings=shardings)(), shardings


@dataclasses.dataclass
class _Interrupt:
    """SIGTERM: all processes agree on the step at which they save and end."""

    asked: bool = False

    def __enter__(self) -> Self:
        self.before = None
        if jax.process_count() == 1:  # otherwise jax's preemption service listens
            self.before = signal.signal(signal.SIGTERM, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:  # what comes after the steps is saved already
            signal.signal(signal.SIGTERM, self.before)

    def _remember(self, *_: Any) -> None:
        self.asked = True

    def at(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked


def due(step: int, every: int) -> bool:
    """True at each multiple of `every`; never where it is 0."""
    return every > 0 and step % every == 0


@dataclasses.dataclass(frozen=True)
class Run:
    """All that a training run is made of.

    objective: loss(params, batch, key), see `objectives`. found: the weights that it
    starts from, see `start.read`; None for a run that goes on from a checkpoint. val:
    the set that the best checkpoint is chosen on, or None.
    """

    config: Any
    workdir: epath.Path
    model: unipt.DualEncoder
    tokenizer: Tokenizer
    objective: Loss
    batches: pipeline.TrainBatches
    mesh: Mesh
    found: Mapping[str, Taken] | None
    val: evaluate.RetrievalSet | None

    @property
    def steps(self) -> int:
        """How many updates the run takes in all."""
        whole = self.config.epochs * len(self.batches) // self.config.batch_size
        return self.config.steps or whole

    def work(self, lengths: np.ndarray) -> float:
        """Model FLOPs of a step on texts of so many tokens, see `flops.step`."""
        losses = [name for name, weight in self.config.loss.items() if weight]
        rate = self.config.mlm.rate
        return flops.step(self.model, lengths, losses=losses, mlm_rate=rate)


def fit(run: Run) -> None:
    """From the last checkpoint, or from what was found, to the last step; then test."""
    config, steps, mesh = run.config, run.steps, run.mesh
    optimiser = make_optimiser(config, steps)
    state, shardings = initial_state(run.model, optimiser, config.seed, mesh)
    checkpoints = Checkpoints(run.workdir / "checkpoints", keep=config.keep)
    begin = checkpoints.latest() or 0
    if begin:
        state = checkpoints.restore(state, begin)
    else:
        state = state.replace(params=start.put(state.params, run.found or {}))
    encoder = encoders.Encoder(
        model=run.model,
        params=None,
        tokenizer=run.tokenizer,
        mesh=mesh,
        lengths=tuple(sorted(config.data.lengths)),
        **encoders.pixel_options(config.pixels),
    )
    log = report.Report(
        run.workdir,
        start=begin,
        total=steps,
        batch_size=config.batch_size,
        peak=flops.mesh_peak(mesh, config.model.dtype, config.peak_tflops),
    )
    profiler = Profiler(window(config.profile, steps), run.workdir, begin, log)
    if begin:
        log.say(f"resumes after step {begin}")
    loop = Loop(run, optimiser, checkpoints, log, encoder, profiler)
    try:
        train_step = make_step(run.objective, optimiser, config.seed, shardings)
        stream = placed(run.batches, begin, config, mesh)
        with profiler:
            state = loop.run_steps(state, train_step, stream, begin)
        checkpoints.wait()
        best = checkpoints.best()
        chosen_on = config.evaluate.val if checkpoints.scored() else "last step"
        encoder = dataclasses.replace(encoder, selected_on=chosen_on)
        params = checkpoints.restore_params(state.params, best)
    finally:
        log.close()
        checkpoints.close()
    finish(config, run.workdir, encoder, params, best)


@dataclasses.dataclass
class Loop:
    """The steps, and what is due between them."""

    run: Run
    optimiser: optim.Optimiser
    checkpoints: Checkpoints
    log: report.Report
    encoder: encoders.Encoder
    profiler: Profiler

    def run_steps(
        self, state: TrainState, train_step: Callable, stream: Iterator, begin: int
    ) -> TrainState:
        """From step `begin` to the last. Raises Stopped after a SIGTERM, saved."""
        with _Interrupt() as interrupt:
            return self._steps(state, train_step, stream, begin, interrupt)

    def _steps(self, state, train_step, stream, begin, interrupt) -> TrainState:
        previous, steps = None, self.run.steps
        for step in range(begin, steps):
            with self.log.waiting():
                batch, lengths = next(stream)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state, metrics = train_step(state, batch)
            self.log.count(self.run.work(lengths))
            done = step + 1  # updates completed: what every log and checkpoint counts
            if step == begin:
                jax.block_until_ready(metrics)
                self.log.started(done)
            jax.block_until_ready(previous)  # the host stays one step ahead, no more
            previous = metrics
            self.profiler.at(done, metrics)
            stop = interrupt.at(done)
            self.after(state, metrics, done, stop)
            if stop and done < steps:
                self.checkpoints.wait()
                raise Stopped(
                    f"stopped at step {done} of {steps} and saved; the same "
                    "command goes on from there"
                )
        return state

    def after(self, state, metrics, done: int, stop: bool) -> None:
        """Reports, validates and saves where that is due; first of all, looks whether
        the numbers are still finite."""
        every, last = self.run.config.every, done == self.run.steps
        reports = due(done, every.report) or last
        validates = self.run.val is not None and (due(done, every.evaluate) or last)
        saves = due(done, every.save) or validates or last or stop
        if reports or saves:
            check_finite(state, self.run.batches, self.optimiser)
        if reports:
            self.log.write(done, jax.device_get(metrics))
        scores = validate(self, state, done) if validates else None
        if saves:
            begin = time.monotonic()
            self.log.flush()
            self.checkpoints.save(state, done, scores)
            self.log.pause(begin)


def placed(
    batches: pipeline.TrainBatches, begin: int, config: Any, mesh: Mesh
) -> Iterator[tuple[dict, np.ndarray]]:
    """Batches on the devices, one ahead of the step that takes them.

    With each come the token counts of its texts, (G,), for the report.
    """
    rows = sharding.local_rows(config.batch_size, mesh)
    stream = batches.from_step(
        begin, threads=config.data.threads, buffer=config.data.buffer
    )

    def place(batch: dict) -> tuple[dict, np.ndarray]:
        lengths = batch.pop("lengths")
        return sharding.place_batch(batch, rows, config.batch_size, mesh), lengths

    ahead = place(next(stream))
    while True:
        following = place(next(stream))
        yield ahead
        ahead = following


def check_finite(
    state: TrainState, batches: pipeline.TrainBatches, optimiser: optim.Optimiser
) -> None:
    """Raises UserError if a loss or gradient was not finite; nothing is saved then."""
    bad = int(jax.device_get(state.bad_step))
    if bad < 0:
        return
    ids = batches.image_ids(bad)
    shown = ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
    raise UserError(
        f"loss or gradient not finite at step {bad + 1} (learning rate "
        f"{float(optimiser.schedule(jnp.int32(bad))):.3g}, images {shown}); nothing was "
        "saved since, the last checkpoint is good: lower config.lr or raise "
        "config.warmup, and use a new --workdir"
    )


def open_set(config: Any, split: str) -> evaluate.RetrievalSet | None:
    """A split to evaluate on, or None where the config names none."""
    if not split:
        return None
    return evaluate.read_set(config.evaluate.records or config.data.records, split)


def validate(loop: Loop, state: TrainState, step: int) -> dict[str, float]:
    """Ranks the validation split with the parameters as they are."""
    begin = time.monotonic()
    figures = evaluate.figures(
        dataclasses.replace(loop.encoder, params=state.params),
        loop.run.val,
        batch_size=loop.run.config.evaluate.batch_size,
        threads=loop.run.config.data.threads,
    )
    scores = {name: float(figures[name]) for name in ranking.FIGURES}
    loop.log.write(step, {f"val_{k}": v for k, v in scores.items()}, speed=False)
    loop.log.pause(begin)
    return scores


def finish(config, workdir, encoder, params, step) -> None:
    """Reports test once, with the parameters that were best on val."""
    test = open_set(config, config.evaluate.test)
    if test is None:
        return
    encoder = dataclasses.replace(encoder, params=params, name=f"{workdir} step {step}")
    options = evaluate.Options(
        batch_size=config.evaluate.batch_size,
        threads=config.data.threads,
        seed=config.seed,
    )
    evaluate.report_run(workdir, encoder, [test], options)
