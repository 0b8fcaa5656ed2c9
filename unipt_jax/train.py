"""The two training jobs, pretrain and finetune: a config and records in; what runs out."""

import functools
import json
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from unipt_jax import (
    announce,
    attention,
    evaluate,
    flops,
    loop,
    objectives,
    optim,
    profile,
    report,
    rundir,
    sharding,
    start,
    tree,
    weights,
)
from unipt_jax import encoder as encoders
from unipt_jax.data import pipeline, tokenizers
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

# A run may go on with these changed: they do not change what is computed.
HARMLESS = ("every", "evaluate.batch_size", "keep", "mesh", "data.threads")
HARMLESS += ("data.buffer", "evaluate.test", "memory", "profile", "peak_tflops")
HARMLESS += ("model.image.remat", "model.text.remat")
HOLD_OUT = "hold_out"  # config.evaluate.val, where the records have no such split


def pretrain(config: Any, workdir: str) -> None:
    """The job: UniPT's pre-training, from wherever the run directory stands."""
    mesh, tokenizer = _begin(config, workdir)
    config = _with_attention(config, workdir, mesh)
    model = encoders.build_model(config, tokenizer)
    _check_lengths(config, model)
    objective = objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(**config.loss),
        pixels=_pixels(config),
        masked=_masking(config, tokenizer),
        memory=_memory(config, mesh),
    )
    found = _weights(config, workdir, model, tokenizer)
    batches = open_batches(config, tokenizer, mesh)
    val = loop.open_set(config, config.evaluate.val)
    lines = {
        "temperature": announce.temperature(config),
        "negatives": f"the global batch of {config.batch_size}",
        "losses": ", ".join(f"{k} {v:g}" for k, v in config.loss.items() if v),
    }
    run = loop.Run(
        config=config,
        workdir=epath.Path(workdir),
        model=model,
        tokenizer=tokenizer,
        objective=objective,
        batches=batches,
        mesh=mesh,
        found=found,
        val=val,
    )
    _run(run, lines)


def finetune(config: Any, workdir: str) -> None:
    """The job: supervised fine-tuning on identities, from wherever the run stands."""
    start.check_given(config.init)
    config = _settled(config, workdir, classes=0)
    mesh, tokenizer = _begin(config, workdir)
    config = _with_attention(config, workdir, mesh)
    bare = encoders.build_model(config, tokenizer)
    _check_lengths(config, bare)
    start.check_towers(config.init["model"], config.model)
    # Classifiers are never loaded: identities are those of the set at hand.
    found = _weights(config, workdir, bare, tokenizer)
    held = _held_out(config)
    batches = open_batches(
        config,
        tokenizer,
        mesh,
        labelled=True,
        hold_out=held,
        identities=config.data.identities,
    )
    losses = objectives.FinetuneWeights(**config.loss)
    if losses.identity or losses.pgu:
        config = _settled(config, workdir, classes=batches.classes)
    model = encoders.build_model(config, tokenizer)
    config = _groups_of(config, model)
    objective = objectives.finetune(
        model,
        weights=losses,
        pixels=_pixels(config),
        masked=_masking(config, tokenizer),
        margin=config.ranking.margin,
        reduction=config.ranking.reduction,
        memory=_memory(config, mesh),
    )
    if held:
        val = evaluate.read_set(
            config.data.records, config.data.split, labels=batches.held_out
        )
    else:
        val = loop.open_set(config, config.evaluate.val)
    lines = announce.of_finetuning(config, batches)
    run = loop.Run(
        config=config,
        workdir=epath.Path(workdir),
        model=model,
        tokenizer=tokenizer,
        objective=objective,
        batches=batches,
        mesh=mesh,
        found=found,
        val=val,
    )
    _run(run, lines)


def _begin(config: Any, workdir: str) -> tuple[Mesh, tokenizers.Tokenizer]:
    """The devices and the words; the cheap mistakes are found here."""
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    sharding.check_batch("batch_size", config.batch_size, mesh)
    _check_length(config)
    if config.evaluate.test:  # not only at the end of a long run
        folder = config.evaluate.records or config.data.records
        Records(folder, config.evaluate.test, PersonRecord)
    own = epath.Path(workdir) / "tokenizer"  # where it came from may be gone
    kept = _goes_on(workdir) and own.is_dir()
    words = tokenizers.load(own if kept else config.tokenizer)
    return mesh, words.with_mask() if config.mlm.add_mask else words


def _check_length(config: Any) -> None:
    """Raises UserError where no schedule follows from the fields."""
    if config.decay not in optim.DECAYS:
        raise UserError(
            f"decay '{config.decay}' is not one of {', '.join(optim.DECAYS)}"
        )
    if config.decay == "steps" and not config.drops:
        raise UserError(
            "decay=steps, but drops is empty; name the epochs after which the rate "
            "falls, such as --config.drops='(20, 40, 50)'"
        )
    late = [drop for drop in config.drops if drop >= config.epochs]
    if config.decay == "steps" and late:
        shares = tuple(max(1, round(d * config.epochs / 60)) for d in (20, 40, 50))
        raise UserError(
            f"drops={tuple(config.drops)} has {late} at or behind the end, epochs="
            f"{config.epochs}, where the rate cannot fall any more; LGUR's shares of "
            f"so many are --config.drops='{shares}'"
        )
    if config.epochs < 1 or config.steps < 0:
        raise UserError(
            f"epochs={config.epochs} and steps={config.steps}: epochs must be 1 or more, "
            "steps 0 (as many as the epochs give) or more"
        )


def _held_out(config: Any) -> float:
    """The share of train's identities that val is made of; 0 where val is a split."""
    if config.evaluate.val != HOLD_OUT:
        return 0.0
    if not config.evaluate.hold_out:
        raise UserError(
            "evaluate.val=hold_out, but evaluate.hold_out=0; give the share of train's "
            "identities that is kept for it, such as 0.05"
        )
    return config.evaluate.hold_out


def _groups_of(config: Any, model: unipt.DualEncoder) -> Any:
    """Without the groups of rates that are of parts which other fields left out."""
    paths = start.shapes(model)
    parts = {path.split("/")[0] for path in paths}
    absent = [f"{part}/kernel" for part in weights.PARTS if part not in parts]
    groups = [
        (pattern, factor)
        for pattern, factor in config.optimiser.groups
        if any(re.search(pattern, path) for path in paths)
        or not any(re.search(pattern, path) for path in absent)
    ]
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.optimiser.groups = tuple(groups)
    return config


def _check_groups(config: Any, params: Any) -> None:
    """Raises UserError where the groups of the rates do not fit the parameters."""
    try:
        tree.assign(params, [tuple(group) for group in config.optimiser.groups])
    except ValueError as error:
        raise UserError(
            f"config.optimiser.groups: {error}; a group that matches nothing is of a "
            "part that this run does not have, or misspelt: leave it out"
        ) from error


def _check_lengths(config: Any, model: unipt.DualEncoder) -> None:
    if config.data.lengths[-1] > model.text.positions:
        raise UserError(
            f"data.lengths ends at {config.data.lengths[-1]}, but the text tower holds "
            f"{model.text.positions} positions; lower the one or raise the other"
        )


def _pixels(config: Any) -> objectives.Pixels:
    pixels = config.pixels
    if pixels.shift < 0 or not 0 <= pixels.erasing <= 1:
        raise UserError(
            f"pixels.shift={pixels.shift} and pixels.erasing={pixels.erasing}: shift "
            "must be 0 or more pixels, erasing a probability from 0 to 1"
        )
    return objectives.Pixels(
        **encoders.pixel_options(pixels),
        flips=pixels.flips,
        shift=pixels.shift,
        erasing=pixels.erasing,
    )


def _masking(config: Any, tokenizer: tokenizers.Tokenizer) -> objectives.Masking:
    if not 0 <= config.mlm.rate < 1:
        raise UserError(
            f"mlm.rate={config.mlm.rate} must be a share of the words, from 0 (no MLM) "
            "to below 1"
        )
    words = config.mlm.whole_words and config.loss.mlm > 0
    continuation = tokenizer.continuation() if words else None
    return objectives.Masking(tokenizer.mask, config.mlm.rate, continuation)


def _memory(config: Any, mesh: Mesh) -> objectives.Memory:
    memory, batch = config.memory, config.batch_size
    if memory.accumulation != "cached":
        raise UserError(
            f"memory.accumulation '{memory.accumulation}' is not there, only cached: "
            "gradients that are summed up over micro-batches as they come, each with "
            "negatives of its own, are of another loss than the whole batch's"
        )
    size = memory.micro_batch
    if size < 0 or (size and (batch % size or size % mesh.size)):
        fits = [n for n in range(mesh.size, batch + 1, mesh.size) if batch % n == 0]
        raise UserError(
            f"memory.micro_batch={size} must divide batch_size={batch}, and be a "
            f"multiple of the {mesh.size} devices: one of "
            f"{', '.join(map(str, fits))}, or 0 for the whole batch at once"
        )
    if memory.chunk < 0:
        raise UserError(
            f"memory.chunk={memory.chunk} must be a number of texts, such as 1024, or 0"
        )
    return objectives.Memory(size, memory.chunk, mesh)


def _settled(config: Any, workdir: str, classes: int) -> Any:
    """The config with what follows from others of its fields, and from the data."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        if not config.loss.pgu:
            config.model.pgu.parts, config.model.retrieval = 0, "global"
        if not config.loss.mlm:
            config.model.interaction.layers = 0
        config.model.identities = classes
        before = epath.Path(workdir) / "config.json"
        if not config.tokenizer and _goes_on(workdir) and before.is_file():
            config.tokenizer = json.loads(before.read_text())["tokenizer"]
        config.tokenizer = config.tokenizer or start.tokenizer_of(config.init)
    return config


def _with_attention(config: Any, workdir: str, mesh: Mesh) -> Any:
    """The config with the fastest attention where it says "auto".

    A run keeps what its first start has measured: another would round in another way.
    """
    config = config.copy_and_resolve_references()
    kept = _kept_attention(workdir)
    with config.unlocked():
        for name, tower in kept.items():
            if config.model[name].attention == attention.AUTO:
                config.model[name].attention = tower
    share = (config.memory.micro_batch or config.batch_size) // mesh.size
    share = min(share, 256)  # enough to tell; a large one may not fit with every kind
    longest = config.data.lengths[-1]
    chosen = attention.of_towers(config.model, batch=max(1, share), longest=longest)
    with config.unlocked():
        for name, (config.model[name].attention, seconds) in chosen.items():
            if seconds and jax.process_index() == 0:
                shown = {k: f"{1000 * v:.2f} ms" for k, v in seconds.items()}
                report.choices(f"attention of the {name} tower, measured", shown)
    return config


def _kept_attention(workdir: str) -> dict[str, str]:
    """What the run in a folder has for each tower; "auto" where there is none.

    As process 0 sees the folder: all processes measure, or none does.
    """
    file, model = epath.Path(workdir) / "config.json", None
    if jax.process_index() == 0 and file.is_file():
        model = json.loads(file.read_text()).get("model")
    towers = ("image", "text")
    found = [attention.AUTO, attention.AUTO]
    if isinstance(
        model, dict
    ):  # not so in another job's folder, which is refused later
        found = [model[name].get("attention", attention.AUTO) for name in towers]
    if jax.process_count() > 1:
        numbers = np.array([unipt.ATTENTION.index(name) for name in found])
        numbers = multihost_utils.broadcast_one_to_all(numbers)
        found = [unipt.ATTENTION[number] for number in numbers.tolist()]
    return dict(zip(towers, found, strict=True))


def _goes_on(workdir: str) -> bool:
    """Whether the run has a checkpoint."""
    # Whole ones alone: what a killed save leaves is a number and more.
    saved = epath.Path(workdir).glob("checkpoints/[0-9]*")
    return any(path.name.isdigit() for path in saved)


def _weights(config, workdir, model, tokenizer) -> dict[str, Any] | None:
    """What the run starts from; None for a run that goes on from a checkpoint.

    Read before anything is written: weights are the likeliest to be missing.
    """
    if _goes_on(workdir):
        return None
    return start.read(config.init, model, tokenizer, extend=config.mlm.add_mask)


def open_batches(
    config: Any, tokenizer: tokenizers.Tokenizer, mesh: Mesh, **options: Any
) -> pipeline.TrainBatches:
    """The training stream that `config.data` describes; options: of its identities."""
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
        **options,
    )


def _run(run: loop.Run, lines: Mapping[str, str]) -> None:
    """Opens the run directory, says what is in force, and trains."""
    init = functools.partial(unipt.initialise, run.model, jax.random.key(0))
    params = jax.eval_shape(init)
    _check_groups(run.config, params)
    # Mistakes in these are told of before anything is written.
    profile.window(run.config.profile, run.steps)
    flops.mesh_peak(run.mesh, run.config.model.dtype, run.config.peak_tflops)
    workdir = rundir.open_workdir(run.config, run.workdir, harmless=HARMLESS)
    if jax.process_index() == 0 and not (workdir / "tokenizer").exists():
        run.tokenizer.save(workdir / "tokenizer")
    if run.found is not None:
        lines = {**lines, **start.choices(run.found)}
    announce.announce(run, params, lines)
    loop.fit(run)
