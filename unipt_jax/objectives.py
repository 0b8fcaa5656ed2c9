"""Objectives by name: a batch of the global program in, weighted losses out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from unipt_jax import losses, masking, pairwise, parts
from unipt_jax.data import transforms
from unipt_jax.errors import UserError
from unipt_jax.models.unipt import DualEncoder, unit

Loss = Callable[[Any, dict, jax.Array], tuple[jax.Array, dict]]


@dataclasses.dataclass(frozen=True)
class PretrainWeights:
    """What the losses of pre-training count; UniPT: contrastive and mlm 1."""

    contrastive: float = 1.0
    mlm: float = 1.0
    sigmoid: float = 0.0


@dataclasses.dataclass(frozen=True)
class FinetuneWeights:
    """What the losses of fine-tuning count; UniPT: identity, ranking, pgu (gamma) 1."""

    identity: float = 1.0
    ranking: float = 1.0
    pgu: float = 1.0
    sdm: float = 0.0
    contrastive: float = 0.0
    mlm: float = 0.0


@dataclasses.dataclass(frozen=True)
class Pixels:
    """How pixels come to the tower: normalisation, and the training augmentation.

    mean, std: one number, or one a channel. flips, shift, erasing: `transforms.augment`.
    """

    mean: float | Sequence[float]
    std: float | Sequence[float]
    flips: bool = False
    shift: int = 0
    erasing: float = 0.0

    def augment(self, key: jax.Array, images: jax.Array) -> jax.Array:
        """(B, H, W, 3) uint8 -> augmented, uint8."""
        return transforms.augment(
            key,
            images,
            flips=self.flips,
            pad=self.shift,
            erasing=self.erasing,
            colour=self.mean,
        )

    def normalise(self, images: jax.Array) -> jax.Array:
        """(B, H, W, 3) uint8 -> float32."""
        return transforms.normalise(images, mean=self.mean, std=self.std)


@dataclasses.dataclass(frozen=True)
class Masking:
    """Which words are hidden, see `masking.mask_tokens`.

    mask_id: None where the tokenizer has no mask token. rate: 0 leaves MLM out.
    """

    mask_id: int | None
    rate: float = 0.15
    continuation: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Memory:
    """How a large batch fits into little memory; loss and gradient stay the same.

    part: so many images and texts pass the towers at a time, see `parts.by_parts`; 0:
    all. chunk: batches above so many compare images with texts in tiles of so many
    texts, see `pairwise`; 0: never. mesh: of the devices that share the batch.
    """

    part: int = 0
    chunk: int = 0
    mesh: Mesh | None = None

    def by_parts(self, encode: Callable[[dict], dict], batch: dict) -> dict:
        """encode(batch), by parts."""
        devices = self.mesh.size if self.mesh else 1
        return parts.by_parts(encode, batch, size=self.part, devices=devices)

    def contrastive(self, image: jax.Array, text: jax.Array, scale: jax.Array):
        """`losses.contrastive`, in tiles where the batch is large."""
        if not self._tiled(len(image)):
            return losses.contrastive(image, text, scale)
        tiles = dict(chunk=self.chunk, mesh=self.mesh)
        return pairwise.contrastive(image, text, scale, **tiles)

    def sigmoid(self, image, text, scale: jax.Array, bias: jax.Array):
        """`losses.sigmoid`, in tiles where the batch is large."""
        if not self._tiled(len(image)):
            return losses.sigmoid(image, text, scale, bias)
        tiles = dict(chunk=self.chunk, mesh=self.mesh)
        return pairwise.sigmoid(image, text, scale, bias, **tiles)

    def _tiled(self, batch: int) -> bool:
        return bool(self.chunk) and batch > self.chunk and self.mesh is not None


def pretrain(
    model: DualEncoder,
    *,
    weights: PretrainWeights,
    pixels: Pixels,
    masked: Masking,
    memory: Memory = Memory(),
) -> Loss:
    """UniPT's pre-training loss: contrastive + MLM, as a function of parameters.

    What has a weight of 0 is left out; so is MLM at a rate of 0. sigmoid: SigLIP's loss,
    in the place of the contrastive one.
    Returns loss(params, batch, key) -> (total, {"contrastive", "mlm", ...}).
    """
    with_mlm = weights.mlm > 0 and masked.rate > 0
    _check_pretraining(model, weights, masked if with_mlm else None)

    def loss(params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        augment_key, mask_key, dropout_key = jax.random.split(key, 3)
        apply = _applied(model, params, dropout_key)
        drawn = _drawn(batch, pixels.augment(augment_key, batch["image"]))
        if with_mlm:
            drawn |= _hide(model, masked, mask_key, batch["tokens"])

        def encode(part: dict) -> dict:
            seen = pixels.normalise(part["image"])
            image = apply("encode_image", seen, part["row"])
            clean, hidden = _read(apply, part)
            out = {"image": image, "text": apply("pool_text", clean, part["tokens"])}
            if with_mlm:
                out["mlm"] = _guess(apply, part, hidden)
            return out

        out = memory.by_parts(encode, drawn)
        pair, scale, metrics = (out["image"], out["text"]), apply("scale"), {}
        if weights.contrastive:
            metrics["contrastive"] = memory.contrastive(*pair, scale)
        if weights.sigmoid:
            metrics["sigmoid"] = memory.sigmoid(*pair, scale, apply("shift"))
        if with_mlm:
            metrics["mlm"] = losses.mean_of(out["mlm"], drawn["used"])
        return _total(weights, metrics), metrics | _temperature(model, scale)

    return loss


def finetune(
    model: DualEncoder,
    *,
    weights: FinetuneWeights,
    pixels: Pixels,
    masked: Masking,
    margin: float = 0.2,
    reduction: str = "sum",
    memory: Memory = Memory(),
) -> Loss:
    """The supervised losses, each where its weight is not 0, as a function of parameters.

    identity: cross-entropy of one classifier on the image's and the text's summary,
    added. ranking: `losses.ranking` on the embeddings, with margin and reduction. pgu:
    identity, the mean over the parts, + ranking on the parts joined (UniPT's Lpgu; the
    classifiers are of the parts' own). sdm, contrastive: on the embeddings, with the
    model's temperature. mlm: through the model's interaction encoder where it has one,
    else from the text alone.
    Returns loss(params, batch, key) -> (total, {loss by name ..., "accuracy"}), where
    accuracy is the share of images and texts that the identity classifier gets right.
    """
    with_mlm = weights.mlm > 0 and masked.rate > 0
    _check_parts(model, weights, masked if with_mlm else None)
    _check_ranking(margin, reduction)

    def loss(params: Any, batch: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        augment_key, mask_key, dropout_key, rank_key = jax.random.split(key, 4)
        label = batch["label"]
        apply = _applied(model, params, dropout_key)
        drawn = _drawn(batch, pixels.augment(augment_key, batch["image"]))
        if with_mlm:
            drawn |= _hide(model, masked, mask_key, batch["tokens"])

        encode = functools.partial(
            _summaries,
            apply,
            pixels,
            parts=bool(weights.pgu),
            crossed=model.interaction is not None,
        )
        out = memory.by_parts(encode, drawn)
        image, text, scale = out["image"], out["text"], apply("scale")
        metrics, accuracy = {}, {}
        if weights.identity:
            metrics["identity"], right = _tell_apart(apply, (image, text), label)
            accuracy = {"accuracy": right}
        image, text = unit(image), unit(text)
        rank = functools.partial(losses.ranking, margin=margin, reduction=reduction)
        if weights.ranking:
            metrics["ranking"] = rank(rank_key, image, text, label)
        if weights.pgu:
            both = out["image_parts"], out["text_parts"]
            key = jax.random.fold_in(rank_key, 1)
            metrics["pgu"] = _granularity(apply, rank, key, both, label)
        if weights.sdm:
            metrics["sdm"] = losses.sdm(image, text, label, scale)
        if weights.contrastive:
            metrics["contrastive"] = memory.contrastive(image, text, scale)
        if with_mlm:
            metrics["mlm"] = losses.mean_of(out["mlm"], drawn["used"])
        return _total(weights, metrics), metrics | accuracy | _temperature(model, scale)

    return loss


def _applied(model: DualEncoder, params: Any, dropout_key: jax.Array) -> Callable:
    """apply(method, *arguments) of the model, with dropout."""

    def apply(method: str, *args: Any) -> jax.Array:
        rngs = {"dropout": dropout_key}  # each layer folds its own path into it
        return model.apply({"params": params}, *args, method=method, rngs=rngs)

    return apply


def _summaries(
    apply: Callable, pixels: Pixels, part: dict, *, parts: bool, crossed: bool
) -> dict:
    """What the supervised losses compare, by row: summaries, parts, hidden words."""
    seen = pixels.normalise(part["image"])
    seen, tokens = apply("image_features", seen, part["row"]), part["tokens"]
    clean, hidden = _read(apply, part)
    out = {
        "image": apply("summarise_image", seen).astype(jnp.float32),
        "text": apply("summarise_text", clean, tokens).astype(jnp.float32),
    }
    if parts:
        out["image_parts"] = apply("image_parts", seen)
        out["text_parts"] = apply("text_parts", clean, tokens)
    if hidden is not None:
        out["mlm"] = _guess(apply, part, hidden, seen if crossed else None)
    return out


def _drawn(batch: dict, images: jax.Array) -> dict:
    """What the towers read, by row of the global batch."""
    tokens = batch["tokens"]
    return {"image": images, "tokens": tokens, "row": jnp.arange(len(tokens))}


def _hide(model: DualEncoder, masked: Masking, key: jax.Array, tokens) -> dict:
    """Masked texts, places, targets and weights as of `masking.mask_tokens`."""
    changed = masking.mask_tokens(
        key,
        tokens,
        special=(model.pad, model.cls, model.sep),
        mask_id=masked.mask_id,
        vocabulary=model.text.vocabulary,
        rate=masked.rate,
        continuation=masked.continuation,
    )
    return dict(zip(("masked", "places", "targets", "used"), changed, strict=True))


def _read(apply: Callable, part: dict) -> tuple[jax.Array, jax.Array | None]:
    """Text features (B, L, D) of clean texts, and of masked ones where there are any.

    Clean and masked texts share one pass of the tower, as one batch of 2B: the same
    arithmetic as two passes.
    """
    tokens, row = part["tokens"], 2 * part["row"]
    if "masked" not in part:
        return apply("text_features", tokens, row), None
    tokens = _interleave(tokens, part["masked"])
    features = apply("text_features", tokens, _interleave(row, row + 1))
    return features[0::2], features[1::2]


def _guess(
    apply: Callable, part: dict, features: jax.Array, seen: jax.Array | None = None
) -> jax.Array:
    """(B,) the loss of each text's hidden words, added.

    features: of the masked texts. seen: of the pictures, for an interaction encoder.
    """
    places = part["places"]
    if seen is not None:
        words = part["masked"], places, part["row"]
        logits = apply("cross_mlm_logits", features, seen, *words)
    else:
        features = jnp.take_along_axis(features, places[..., None], axis=1)
        logits = apply("mlm_logits", features)  # (B, M, D) -> (B, M, V)
    found = losses.surprise(logits, part["targets"])
    return jnp.sum(found * part["used"], axis=1)


def _granularity(apply, rank, key, parts, label) -> jax.Array:
    """Lpgu of (B, parts, F) image and text parts: identity + ranking."""
    logits = [apply("classify_parts", x) for x in parts]  # (B, parts, C)
    of_parts = jnp.broadcast_to(label[:, None], logits[0].shape[:2])
    identity = sum(_identity(x, of_parts) for x in logits)
    image, text = (unit(x.reshape(len(x), -1)) for x in parts)  # (B, parts * F)
    return identity + rank(key, image, text, label)


def _tell_apart(apply: Callable, pair: tuple, label: jax.Array) -> tuple:
    """Lid on both summaries, added, and the share that the classifier gets right."""
    logits = [apply("classify", x) for x in pair]
    right = [jnp.mean(x.argmax(-1) == label) for x in logits]
    return sum(_identity(x, label) for x in logits), sum(right) / 2


def _identity(logits: jax.Array, label: jax.Array) -> jax.Array:
    return losses.cross_entropy(logits, label, jnp.ones(label.shape, jnp.float32))


def _total(weights: PretrainWeights | FinetuneWeights, metrics: dict) -> jax.Array:
    """Each loss times its weight, added by name."""
    return sum(getattr(weights, name) * value for name, value in metrics.items())


def _temperature(model: DualEncoder, scale: jax.Array) -> dict[str, jax.Array]:
    return {"temperature": 1 / scale} if model.temperature == "learned" else {}


def _check_pretraining(
    model: DualEncoder, weights: PretrainWeights, masked: Masking | None
) -> None:
    """Raises UserError where a loss has a weight and the model lacks its part."""
    if min(dataclasses.astuple(weights)) < 0:
        raise UserError(f"a weight in config.loss is below 0: {weights}")
    if not (weights.contrastive or weights.sigmoid or masked):
        raise UserError(
            "every weight in config.loss is 0, or loss.mlm alone is not and mlm.rate is "
            "0; give a loss that counts"
        )
    if weights.sigmoid and model.bias == "none":
        raise UserError(
            f"loss.sigmoid={weights.sigmoid}, but model.bias=none; SigLIP learns one: "
            "model.bias=learned, with model.temperature=learned and "
            "model.temperature_init=0.1"
        )
    if masked is not None:
        remedy = "model.mlm_output=tied"
        _check_head(model.mlm_output != "none", remedy, masked.mask_id)


def _check_head(there: bool, remedy: str, mask_id: int | None) -> None:
    problems = {
        "the tokenizer has no mask token (mlm.add_mask=True adds one)": mask_id is None,
        f"the model has no head for it ({remedy})": not there,
    }
    lacks = [text for text, is_so in problems.items() if is_so]
    if lacks:
        raise UserError(
            f"loss.mlm is not 0, but {' and '.join(lacks)}; or set loss.mlm=0"
        )


def _check_parts(
    model: DualEncoder, weights: FinetuneWeights, masked: Masking | None
) -> None:
    """Raises UserError where a loss has a weight and the model lacks its part."""
    counted = weights if masked else dataclasses.replace(weights, mlm=0.0)
    if not any(dataclasses.astuple(counted)):
        raise UserError(
            "every weight in config.loss is 0, or loss.mlm alone is not and mlm.rate is "
            "0; give a loss that counts"
        )
    if weights.pgu and model.pgu is None:
        raise UserError(
            f"loss.pgu={weights.pgu}, but model.pgu.parts=0; the paper has 6 parts, "
            "loss.pgu=0 leaves PGU out"
        )
    if (weights.identity or weights.pgu) and not model.identities:
        raise UserError(
            f"loss.identity={weights.identity} and loss.pgu={weights.pgu}, but "
            "model.identities=0; give the number of identities in training"
        )
    if min(dataclasses.astuple(weights)) < 0:
        raise UserError(f"a weight in config.loss is below 0: {weights}")
    if masked is not None:
        there = model.interaction is not None or model.mlm_output != "none"
        remedy = "model.interaction.layers=4, or model.mlm_output=tied"
        _check_head(there, remedy, masked.mask_id)


def _check_ranking(margin: float, reduction: str) -> None:
    if not 0 < margin <= 2:  # nor NaN
        raise UserError(
            f"ranking.margin={margin} must be above 0, and at most 2, the widest that "
            "cosines lie apart; the paper has 0.2"
        )
    if reduction not in losses.REDUCTIONS:
        raise UserError(
            f"ranking.reduction '{reduction}' is not one of "
            + ", ".join(losses.REDUCTIONS)
        )


def _interleave(a: jax.Array, b: jax.Array) -> jax.Array:
    """(B, ...), (B, ...) -> (2B, ...), row i of both side by side.

    So each device's rows stay where they are; joining end to end would move them.
    """
    return jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
