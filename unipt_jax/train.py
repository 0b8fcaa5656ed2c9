"""The pretrain job: records in; a run directory with model, numbers and report out."""

import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unipt_jax import encoder as encoders
from unipt_jax import (
    evaluate,
    objectives,
    optim,
    ranking,
    report,
    rundir,
    sharding,
    start,
)
from unipt_jax.checkpoint import Checkpoints
from unipt_jax.data import pipeline, tokenizers
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.errors import Stopped, UserError
from unipt_jax.models import unipt
from unipt_jax.optim import TrainState

# A run may go on with these changed: they do not change what is computed.
HARMLESS = ("every", "evaluate", "keep", "mesh", "data.threads", "data.buffer")


def pretrain(config: Any, workdir: str) -> None:
    """The job: UniPT's pre-training, from wherever the run directory stands."""
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    sharding.check_batch("batch_size", config.batch_size, mesh)
    tokenizer = tokenizers.load(config.tokenizer)
    if config.mlm.add_mask:
        tokenizer = tokenizer.with_mask()
    model = encoders.build_model(config, tokenizer)
    if config.data.lengths[-1] > model.text.positions:
        raise UserError(
            f"data.lengths ends at {config.data.lengths[-1]}, but the text tower holds "
            f"{model.text.positions} positions; lower the one or raise the other"
        )
    if config.mlm.whole_words and config.loss.mlm > 0:
        continuation = tokenizer.continuation()
    else:
        continuation = None
    objective = objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(**config.loss),
        **encoders.pixel_options(config.pixels),
        flips=config.pixels.flips,
        shift=config.pixels.shift,
        mask_id=tokenizer.mask,
        mask_rate=config.mlm.rate,
        continuation=continuation,
    )
    # Weights first: they are the likeliest to be missing, and nothing is written yet.
    # Whole checkpoints alone: what a killed save leaves is a number and more.
    saved = epath.Path(workdir).glob("checkpoints/[0-9]*")
    resumes = any(path.name.isdigit() for path in saved)
    extend = config.mlm.add_mask
    found = {}
    if not resumes:
        found = start.read(config.init, model, tokenizer, extend=extend)
    batches = open_batches(config, tokenizer, mesh)
    steps = config.steps or config.epochs * len(batches) // config.batch_size
    workdir = rundir.open_workdir(config, workdir, harmless=HARMLESS)
    if jax.process_index() == 0 and not (workdir / "tokenizer").exists():
        tokenizer.save(workdir / "tokenizer")
    lines = {} if resumes else start.choices(found)
    announce(config, model, tokenizer, batches, steps, mesh, lines)
    fit(config, workdir, model, objective, batches, tokenizer, steps, mesh, found)


def open_batches(
    config: Any, tokenizer: tokenizers.Tokenizer, mesh: Mesh
) -> pipeline.TrainBatches:
    """The training stream that `config.data` describes."""
    data = config.data
    records = Records(data.records, data.split, PersonRecord)
    captions = None
    if data.captions:
        captions = Records(data.captions, data.split, CaptionRecord)
    model = config.model.image
    return pipeline.TrainBatches(
        records,
        captions,
        tokenizer,
        batch_size=config.batch_size,
        rows=sharding.local_rows(config.batch_size, mesh),
        size=(model.height, model.width),
        lengths=tuple(data.lengths),
        seed=config.seed,
        sample=data.sample,
        cache=data.cache,
        progress=jax.process_index() == 0,
    )


def announce(config, model, tokenizer, batches, steps, mesh, more) -> None:
    """Prints the choices that a reader of the paper would ask for, and `more`."""
    if jax.process_index() != 0:
        return
    table = batches.table
    init = functools.partial(unipt.initialise, model, jax.random.key(0))
    report.parameter_table(jax.eval_shape(init))
    fixed = config.model.temperature == "fixed"
    values = {
        "recipe": config.recipe,
        "devices": f"{mesh.size} ({jax.devices()[0].device_kind}), mesh {dict(mesh.shape)}",
        "records": f"{config.data.records} split {config.data.split}: {len(batches)} "
        f"samples ({config.data.sample}), captions from "
        f"{config.data.captions or 'the records'}",
        "without caption": f"{batches.without_caption} images left out",
        "tokenizer": f"{config.tokenizer}, {len(tokenizer)} tokens",
        "text lengths": f"{tuple(config.data.lengths)}; {table.cut} captions cut",
        "steps": f"{steps} of {config.batch_size} images",
        "temperature": config.model.temperature
        + (f" {config.model.temperature_init}" if fixed else ""),
        "negatives": f"the global batch of {config.batch_size}",
        "pooling": "class token and end of text"
        if config.model.pool == "token"
        else f"maximum, padding {'in' if config.model.pool_padding else 'masked'}, "
        f"class tokens {'in' if config.model.pool_special else 'masked'}",
        "MLM": f"weight {config.loss.mlm}, rate {config.mlm.rate}, "
        + ("whole words" if config.mlm.whole_words else "tokens")
        + f", head {config.model.mlm_output}",
        "learning rate": f"{config.lr}, warm-up {config.warmup:.0%}, {config.decay}",
        **more,
        "precision": f"{config.model.dtype} compute, float32 parameters and losses",
    }
    report.choices("choices in force", values)
    if table.cut:
        print(
            f"warning: {table.cut} captions are longer than "
            f"{config.data.lengths[-1]} tokens; their ends are cut",
            flush=True,
        )


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
        ),
        betas=tuple(config.optimiser.betas),
        eps=config.optimiser.eps,
        weight_decay=config.optimiser.weight_decay,
        clip=config.optimiser.clip,
        groups=tuple(tuple(group) for group in config.optimiser.groups),
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

    def __post_init__(self) -> None:
        if jax.process_count() == 1:  # otherwise jax's preemption service listens
            signal.signal(signal.SIGTERM, self._remember)

    def _remember(self, *_: Any) -> None:
        self.asked = True

    def at(self, step: int) -> bool:
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self.asked


def due(step: int, every: int) -> bool:
    """True at each multiple of `every`; never where it is 0."""
    return every > 0 and step % every == 0


def fit(
    config, workdir, model, objective, batches, tokenizer, steps, mesh, found
) -> None:
    """From the last checkpoint, or from `found`, to the last step; then test, once."""
    optimiser = make_optimiser(config, steps)
    state, shardings = initial_state(model, optimiser, config.seed, mesh)
    checkpoints = Checkpoints(workdir / "checkpoints", keep=config.keep)
    begin = checkpoints.latest() or 0
    if begin:
        state = checkpoints.restore(state, begin)
    else:
        state = state.replace(params=start.put(state.params, found))
    encoder = encoders.Encoder(
        model=model,
        params=None,
        tokenizer=tokenizer,
        mesh=mesh,
        lengths=tuple(sorted(config.data.lengths)),
        **encoders.pixel_options(config.pixels),
    )
    log = report.Report(workdir, start=begin, total=steps, batch_size=config.batch_size)
    if begin:
        log.say(f"resumes after step {begin}")
    loop = Loop(config, steps, optimiser, batches, checkpoints, log, encoder)
    try:
        train_step = make_step(objective, optimiser, config.seed, shardings)
        state = loop.run(state, train_step, placed(batches, begin, config, mesh), begin)
        checkpoints.wait()
        best = checkpoints.best()
        params = checkpoints.restore_params(state.params, best)
    finally:
        log.close()
        checkpoints.close()
    finish(config, workdir, encoder, params, best)


@dataclasses.dataclass
class Loop:
    """The steps, and what is due between them."""

    config: Any
    steps: int
    optimiser: optim.Optimiser
    batches: pipeline.TrainBatches
    checkpoints: Checkpoints
    log: report.Report
    encoder: encoders.Encoder

    def run(
        self, state: TrainState, train_step: Callable, stream: Iterator, start: int
    ) -> TrainState:
        """From `start` to the last step. Raises Stopped after a SIGTERM, saved."""
        interrupt, previous = _Interrupt(), None
        val = open_set(self.config, self.config.evaluate.val)
        for step in range(start, self.steps):
            state, metrics = train_step(state, next(stream))
            done = step + 1  # updates completed: what every log and checkpoint counts
            if step == start:
                jax.block_until_ready(metrics)
                self.log.started(done)
            jax.block_until_ready(previous)  # the host stays one step ahead, no more
            previous = metrics
            stop = interrupt.at(done)
            self.after(state, metrics, done, val, stop)
            if stop and done < self.steps:
                self.checkpoints.wait()
                raise Stopped(
                    f"stopped at step {done} of {self.steps} and saved; the same "
                    "command goes on from there"
                )
        return state

    def after(self, state, metrics, done: int, val, stop: bool) -> None:
        """Reports, validates and saves where that is due; first of all, looks whether
        the numbers are still finite."""
        every, last = self.config.every, done == self.steps
        reports = due(done, every.report) or last
        validates = val is not None and (due(done, every.evaluate) or last)
        saves = due(done, every.save) or validates or last or stop
        if reports or saves:
            check_finite(state, self.batches, self.optimiser)
        if reports:
            self.log.write(done, jax.device_get(metrics))
        scores = validate(self, state, val, done) if validates else None
        if saves:
            self.log.flush()
            self.checkpoints.save(state, done, scores)


def placed(
    batches: pipeline.TrainBatches, start: int, config: Any, mesh: Mesh
) -> Iterator[dict]:
    """Batches on the devices, one ahead of the step that takes them."""
    rows = sharding.local_rows(config.batch_size, mesh)
    stream = batches.from_step(
        start, threads=config.data.threads, buffer=config.data.buffer
    )
    ahead = sharding.place_batch(next(stream), rows, config.batch_size, mesh)
    while True:
        following = sharding.place_batch(next(stream), rows, config.batch_size, mesh)
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


def validate(loop: Loop, state: TrainState, val, step: int) -> dict[str, float]:
    """Ranks the validation split with the parameters as they are."""
    begin = time.monotonic()
    figures, _, _ = evaluate.evaluate(
        dataclasses.replace(loop.encoder, params=state.params),
        val,
        batch_size=loop.config.evaluate.batch_size,
        threads=loop.config.data.threads,
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
    batch = dict(batch_size=config.evaluate.batch_size, threads=config.data.threads)
    figures, queries, gallery = evaluate.evaluate(encoder, test, **batch)
    options = dict(run=workdir, examples=8, seed=config.seed)
    html = evaluate.report_page(encoder, test, queries, gallery, figures, **options)
    results = {test.name: figures | {"model": encoder.name}}
    evaluate.write_results(workdir, results, html)
    if jax.process_index() == 0:
        print(evaluate.table(results))
        print(f"see {workdir}/report.html", flush=True)
