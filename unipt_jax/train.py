"""The two training jobs, pretrain and finetune: a config and records in; what runs out."""

import functools
import json
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from unipt_jax import encoder as encoders
from unipt_jax import (
    evaluate,
    loop,
    objectives,
    optim,
    report,
    rundir,
    sharding,
    start,
    tree,
)
from unipt_jax.data import pipeline, tokenizers
from unipt_jax.data.records import CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError
from unipt_jax.models import unipt

# A run may go on with these changed: they do not change what is computed.
HARMLESS = ("every", "evaluate.batch_size", "keep", "mesh", "data.threads")
HARMLESS += ("data.buffer", "evaluate.test", "evaluate.records")
HOLD_OUT = "hold_out"  # config.evaluate.val, where the records have no such split


def pretrain(config: Any, workdir: str) -> None:
    """The job: UniPT's pre-training, from wherever the run directory stands."""
    mesh, tokenizer = _begin(config, workdir)
    model = encoders.build_model(config, tokenizer)
    _check_lengths(config, model)
    objective = objectives.pretrain(
        model,
        weights=objectives.PretrainWeights(**config.loss),
        pixels=_pixels(config),
        masked=_masking(config, tokenizer),
    )
    found = _weights(config, workdir, model, tokenizer)
    batches = open_batches(config, tokenizer, mesh)
    val = loop.open_set(config, config.evaluate.val)
    lines = {
        "temperature": _temperature(config),
        "negatives": f"the global batch of {config.batch_size}",
    }
    _run(config, workdir, model, objective, batches, tokenizer, mesh, found, val, lines)


def finetune(config: Any, workdir: str) -> None:
    """The job: supervised fine-tuning on identities, from wherever the run stands."""
    start.check_given(config.init)
    config = _settled(config, workdir, classes=0)
    mesh, tokenizer = _begin(config, workdir)
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
    weights = objectives.FinetuneWeights(**config.loss)
    if weights.identity or weights.pgu:
        config = _settled(config, workdir, classes=batches.classes)
    model = encoders.build_model(config, tokenizer)
    objective = objectives.finetune(
        model,
        weights=weights,
        pixels=_pixels(config),
        masked=_masking(config, tokenizer),
        margin=config.ranking.margin,
        reduction=config.ranking.reduction,
    )
    if held:
        val = evaluate.read_set(
            config.data.records, config.data.split, labels=batches.held_out
        )
    else:
        val = loop.open_set(config, config.evaluate.val)
    lines = _choices(config, batches)
    _run(config, workdir, model, objective, batches, tokenizer, mesh, found, val, lines)


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


def _run(
    config, workdir, model, objective, batches, tokenizer, mesh, found, val, lines
) -> None:
    """Opens the run directory, says what is in force, and trains."""
    steps = config.steps or config.epochs * len(batches) // config.batch_size
    init = functools.partial(unipt.initialise, model, jax.random.key(0))
    params = jax.eval_shape(init)
    _check_groups(config, params)
    workdir = rundir.open_workdir(config, workdir, harmless=HARMLESS)
    if jax.process_index() == 0 and not (workdir / "tokenizer").exists():
        tokenizer.save(workdir / "tokenizer")
    if found is not None:
        lines = lines | start.choices(found)
    announce(config, params, tokenizer, batches, steps, mesh, lines)
    found = found or {}
    loop.fit(
        *(config, workdir, model, objective, batches, tokenizer, steps, mesh),
        *(found, val),
    )


def announce(config, params, tokenizer, batches, steps, mesh, more) -> None:
    """Prints the choices that a reader of the paper would ask for, and `more`."""
    if jax.process_index() != 0:
        return
    table = batches.table
    report.parameter_table(params)
    chosen_on = config.evaluate.val or "nothing: the last step is taken"
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
        "pooling": "class token and end of text"
        if config.model.pool == "token"
        else f"maximum, padding {'in' if config.model.pool_padding else 'masked'}, "
        f"class tokens {'in' if config.model.pool_special else 'masked'}",
        "MLM": f"weight {config.loss.mlm}, rate {config.mlm.rate}, "
        + ("whole words" if config.mlm.whole_words else "tokens")
        + f", head {_mlm_head(config)}",
        "learning rate": _learning_rate(config),
        "best checkpoint by": chosen_on,
        **more,
        "precision": f"{config.model.dtype} compute, float32 parameters and losses",
    }
    report.choices("choices in force", values)
    warnings = []
    if table.cut:
        warnings.append(
            f"{table.cut} captions are longer than {config.data.lengths[-1]} tokens; "
            "their ends are cut"
        )
    if config.evaluate.val and config.evaluate.val == config.evaluate.test:
        warnings.append(
            f"the best checkpoint is chosen on '{config.evaluate.val}', the split that "
            "is reported: its figures are too good, and every output says so"
        )
    for warning in warnings:
        print(f"warning: {warning}", flush=True)


def _choices(config: Any, batches: pipeline.TrainBatches) -> dict[str, str]:
    """What a reader would ask of fine-tuning."""
    losses = {name: weight for name, weight in config.loss.items() if weight}
    lines = {
        "losses": ", ".join(f"{k} {v:g}" for k, v in losses.items()),
        "identities": f"{batches.classes} in training, {len(batches.held_out)} held out",
        "batches": f"{config.data.identities} identities x "
        f"{config.batch_size // config.data.identities} samples"
        if config.data.identities
        else "samples as they come",
        "augmentation": f"flips {config.pixels.flips}, shift {config.pixels.shift}, "
        f"erasing {config.pixels.erasing:g}, drop path {config.model.image.drop_path:g}",
        "retrieval by": config.model.retrieval,
    }
    if config.loss.ranking or config.loss.pgu:
        lines["ranking"] = (
            f"margin {config.ranking.margin}, a random semi-hard negative each way, "
            f"{config.ranking.reduction} over anchors"
        )
    if config.loss.pgu:
        lines["PGU"] = (
            f"{config.model.pgu.parts} parts, reads {config.model.pgu.tokens} tokens"
        )
    if config.loss.sdm or config.loss.contrastive:
        lines["temperature"] = _temperature(config)
    return lines | start.differences(config.init["model"], config)


def _temperature(config: Any) -> str:
    fixed = config.model.temperature == "fixed"
    value = f" {config.model.temperature_init}" if fixed else ""
    return config.model.temperature + value


def _mlm_head(config: Any) -> str:
    crossed = (config.model.get("interaction") or {"layers": 0})["layers"]
    return (
        f"after {crossed} layers that read the image"
        if crossed
        else (config.model.mlm_output)
    )


def _learning_rate(config: Any) -> str:
    text = f"{config.lr}, warm-up {config.warmup:.0%}, {config.decay}"
    if config.decay == "steps":
        text += f" x{config.drop_factor} after {tuple(config.drops)} of {config.epochs}"
    groups = [tuple(group) for group in config.optimiser.groups]
    if len(groups) > 1:
        text += "; " + ", ".join(f"{p or 'the rest'} x{f:g}" for p, f in groups)
    return text
