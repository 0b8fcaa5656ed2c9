"""What a run says of itself before it trains: a config and its parts in, lines out."""

from collections.abc import Mapping
from typing import Any

import jax

from unipt_jax import report, start
from unipt_jax.data import pipeline
from unipt_jax.loop import Run


def announce(run: Run, params: Any, more: Mapping[str, str]) -> None:
    """Prints the choices that a reader of the paper would ask for, and `more`.

    params: the model's, or their shapes.
    """
    if jax.process_index() != 0:
        return
    config, batches = run.config, run.batches
    table, mesh = batches.table, run.mesh
    report.parameter_table(params)
    chosen_on = config.evaluate.val or "nothing: the last step is taken"
    values = {
        "recipe": config.recipe,
        "devices": f"{mesh.size} ({jax.devices()[0].device_kind}), mesh {dict(mesh.shape)}",
        "records": f"{config.data.records} split {config.data.split}: {len(batches)} "
        f"samples ({config.data.sample}), captions from "
        f"{config.data.captions or 'the records'}",
        "without caption": f"{batches.without_caption} images left out",
        "tokenizer": f"{config.tokenizer}, {len(run.tokenizer)} tokens",
        "text lengths": f"{tuple(config.data.lengths)}; {table.cut} captions cut",
        "steps": f"{run.steps} of {config.batch_size} images",
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
        "attention": f"image {run.model.image.attention}, text "
        f"{run.model.text.attention}",
        "memory": _memory(config),
    }
    report.choices("choices in force", values)
    for warning in _warnings(config, table):
        print(f"warning: {warning}", flush=True)


def _warnings(config: Any, table: pipeline.TokenTable) -> list[str]:
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
    weights = config.loss.get("sdm", 0) + config.loss.get("contrastive", 0)
    if config.job == "finetune" and weights and config.model.temperature == "none":
        warnings.append(
            "loss.sdm and loss.contrastive are softmaxes of bare cosines without a "
            "temperature, which teach little; set model.temperature=fixed, and "
            "model.temperature_init=0.02 for IRRA's"
        )
    return warnings


def of_finetuning(config: Any, batches: pipeline.TrainBatches) -> dict[str, str]:
    """What a reader would ask of fine-tuning, by name."""
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
        lines["temperature"] = temperature(config)
    return lines | start.differences(config.init["model"], config)


def temperature(config: Any) -> str:
    """How cosines are scaled."""
    fixed = config.model.temperature == "fixed"
    value = f" {config.model.temperature_init}" if fixed else ""
    return config.model.temperature + value


def _mlm_head(config: Any) -> str:
    crossed = (config.model.get("interaction") or {"layers": 0})["layers"]
    read = f"after {crossed} layers that read the image"
    return read if crossed else config.model.mlm_output


def _memory(config: Any) -> str:
    size, chunk = config.memory.micro_batch, config.memory.chunk
    towers = f"{size} images and texts at a time" if size else "the whole batch at once"
    remat = {config.model.image.remat, config.model.text.remat} - {"none"}
    again = f", remat {' and '.join(sorted(remat))}" if remat else ""
    tiled = [n for n in ("contrastive", "sigmoid") if config.loss.get(n)]
    if not tiled or not 0 < chunk < config.batch_size:
        return towers + again
    return f"{towers}{again}, {' and '.join(tiled)} loss in tiles of {chunk} texts"


def _learning_rate(config: Any) -> str:
    text = f"{config.lr}, warm-up {config.warmup:.0%}, {config.decay}"
    if config.decay == "steps":
        text += f" x{config.drop_factor} after {tuple(config.drops)} of {config.epochs}"
    groups = [tuple(group) for group in config.optimiser.groups]
    if len(groups) > 1:
        text += "; " + ", ".join(f"{p or 'the rest'} x{f:g}" for p, f in groups)
    return text
