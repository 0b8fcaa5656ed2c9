"""Objectives by name: a batch of the global program in, weighted losses out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from unipt_jax import losses, masking
from unipt_jax.data import transforms
from unipt_jax.errors import UserError
from unipt_jax.models.unipt import DualEncoder


@dataclasses.dataclass(frozen=True)
class PretrainWeights:
    """What the two losses of pre-training count (UniPT: both 1)."""

    contrastive: float = 1.0
    mlm: float = 1.0


def pretrain(
    model: DualEncoder,
    *,
    weights: PretrainWeights,
    mean: float | Sequence[float],
    std: float | Sequence[float],
    flips: bool,
    shift: int,
    mask_id: int | None,
    mask_rate: float,
    continuation: jax.Array | None,
) -> Callable[[Any, dict, jax.Array], tuple[jax.Array, dict]]:
    """UniPT's pre-training loss: contrastive + MLM, as a function of parameters.

    mean, std: of the pixels. flips, shift: augmentation, see `transforms.augment`.
    mask_id, mask_rate, continuation: see `masking.mask_tokens`; a rate of 0 or a
    weight of 0 leaves MLM out. The clean and the masked texts share one pass of the
    text tower, as one batch of 2B: the same arithmetic as two passes.
    Returns loss(params, batch, key) -> (total, {"contrastive", "mlm", ...}).
    """
    mask_tokens = functools.partial(
        masking.mask_tokens,
        special=(model.pad, model.cls, model.sep),
        mask_id=mask_id,
        vocabulary=model.text.vocabulary,
        rate=mask_rate,
        continuation=continuation,
    )
    with_mlm = weights.mlm > 0 and mask_rate > 0
    if with_mlm:
        _check_head(model, mask_id)

    def loss(params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        augment_key, mask_key, dropout_key = jax.random.split(key, 3)
        tokens = batch["tokens"]
        images = transforms.augment(augment_key, batch["image"], flips=flips, pad=shift)

        def apply(method: str, *args: Any) -> jax.Array:
            rngs = {"dropout": dropout_key}  # each layer folds its own path into it
            return model.apply({"params": params}, *args, method=method, rngs=rngs)

        pixels = transforms.normalise(images, mean=mean, std=std)
        image, metrics = apply("encode_image", pixels, True), {}
        if with_mlm:
            masked, places, targets, used = mask_tokens(mask_key, tokens)
            features = apply("text_features", _interleave(tokens, masked), True)
            clean, hidden = features[0::2], features[1::2]
            hidden = jnp.take_along_axis(hidden, places[..., None], axis=1)
            logits = apply("mlm_logits", hidden)  # (B, M, D) -> (B, M, V)
            metrics["mlm"] = losses.cross_entropy(logits, targets, used)
        else:
            clean = apply("text_features", tokens, True)
        text = apply("pool_text", clean, tokens)
        scale = apply("scale")
        metrics["contrastive"] = losses.contrastive(image, text, scale)
        total = weights.contrastive * metrics["contrastive"]
        if with_mlm:
            total = total + weights.mlm * metrics["mlm"]
        learned = model.temperature == "learned"
        return total, metrics | ({"temperature": 1 / scale} if learned else {})

    return loss


def _check_head(model: DualEncoder, mask_id: int | None) -> None:
    problems = {
        "the tokenizer has no mask token (mlm.add_mask=True adds one)": mask_id is None,
        "the model has no head for it (model.mlm_output=tied)": model.mlm_output
        == "none",
    }
    lacks = [text for text, is_so in problems.items() if is_so]
    if lacks:
        raise UserError(
            f"loss.mlm is not 0, but {' and '.join(lacks)}; or set loss.mlm=0"
        )


def _interleave(a: jax.Array, b: jax.Array) -> jax.Array:
    """(B, L), (B, L) -> (2B, L), row i of both side by side.

    So each device's rows stay where they are; joining end to end would move them.
    """
    return jnp.stack([a, b], axis=1).reshape(-1, a.shape[-1])
