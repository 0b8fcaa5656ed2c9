"""UniPT's pre-training step in PyTorch, from transformers' modules: what ours races.

In: uint8 images and padded token ids. Out: one AdamW update and its loss. Three ways:
`eager` writes the method down as it stands; `expert` knows every trick that ours does
(short texts, one pass of the text tower, the head on masked places alone), and SDPA and
a fused AdamW; `expert_onednn` does its products in training, on a CPU, by a private
operator of PyTorch's that calls oneDNN (torch 2.13's MKL keeps to AVX2 on AMD: 110
against 240 GFLOP/s a core). On a GPU the experts are compiled (on a CPU that gained
nothing). The weights are random.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from unipt_jax.errors import UserError

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel
    from transformers.activations import GELUActivation
    from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
except ImportError as error:
    raise UserError(
        f"this benchmark needs PyTorch and transformers ({error}); install them with "
        "pip install '.[torch]'"
    ) from error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class Tokens:
    """The ids that masking must know, and how many there are."""

    vocabulary: int
    pad: int
    cls: int
    sep: int
    mask: int


class Model(nn.Module):
    """transformers' ViT and BERT, projections to one space and the tied MLM head."""

    def __init__(self, model: Mapping[str, Any], tokens: Tokens, attention: str):
        """model: a config's `model` section. attention: transformers' name for it."""
        super().__init__()
        image, text = model["image"], model["text"]
        config = ViTConfig(
            **_sizes(image),
            image_size=(image["height"], image["width"]),
            patch_size=tuple(image["patch"]),
        )
        self.image = ViTModel(config, add_pooling_layer=False)
        _drop_hidden(self.image, image["dropout"])
        config = BertConfig(
            **_sizes(text),
            vocab_size=tokens.vocabulary,
            max_position_embeddings=text["positions"],
            pad_token_id=tokens.pad,
        )
        self.text = BertModel(config, add_pooling_layer=False)
        self.image.set_attn_implementation(attention)
        self.text.set_attn_implementation(attention)
        self.image_projection = nn.Linear(image["features"], model["embedding"])
        self.text_projection = nn.Linear(text["features"], model["embedding"])
        self.mlm_transform = BertPredictionHeadTransform(config)
        self.mlm_bias = nn.Parameter(torch.zeros(tokens.vocabulary))

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.image(pixels).last_hidden_state

    def text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and their mask -> (B, L, D)."""
        return self.text(tokens, attention_mask=mask).last_hidden_state

    def embed_image(self, features: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, P), rows of length 1."""
        return F.normalize(self.image_projection(features).amax(1).float(), dim=-1)

    def embed_text(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L, D) -> (B, P), rows of length 1; padding does not take part."""
        x = self.text_projection(features)
        x = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min)
        return F.normalize(x.amax(1).float(), dim=-1)

    def mlm_logits(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V): a product with the token embedding."""
        kernel = self.text.get_input_embeddings().weight
        return self.product(self.mlm_transform(features), kernel, self.mlm_bias)

    @staticmethod
    def product(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor):
        """x @ kernel.T + bias."""
        return F.linear(x, kernel, bias)


def _sizes(tower: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's section in transformers' words."""
    return dict(
        hidden_size=tower["features"],
        num_hidden_layers=tower["layers"],
        num_attention_heads=tower["heads"],
        intermediate_size=tower["hidden"],
        hidden_dropout_prob=tower["dropout"],
        attention_probs_dropout_prob=tower["attention_dropout"],
        layer_norm_eps=tower["norm_eps"],
    )


def _drop_hidden(tower: nn.Module, rate: float) -> None:
    """Adds the dropout on the MLP's hidden layer that transformers' ViT leaves out."""
    for module in list(tower.modules()):
        for name, child in module.named_children():
            if isinstance(child, GELUActivation):
                setattr(module, name, nn.Sequential(nn.GELU(), nn.Dropout(rate)))


def _onednn(x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor | None = None):
    """x @ kernel.T + bias, for a CPU: the product that torch.compile has at inference."""
    return torch.ops.mkldnn._linear_pointwise(x, kernel, bias, "none", [], "")


class OneDnnProduct(torch.autograd.Function):
    """F.linear in float32 with all three of its products by oneDNN."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, kernel: torch.Tensor, bias: torch.Tensor):
        ctx.save_for_backward(x, kernel)
        return _onednn(x, kernel, bias)

    @staticmethod
    def backward(ctx, g: torch.Tensor):
        x, kernel = ctx.saved_tensors
        rows, inputs = g.reshape(-1, g.shape[-1]), x.reshape(-1, x.shape[-1])
        dx = (
            _onednn(rows, kernel.t()).view(x.shape) if ctx.needs_input_grad[0] else None
        )
        return dx, _onednn(rows.t(), inputs.t()), rows.sum(0)


class OneDnnLinear(nn.Linear):
    """nn.Linear by oneDNN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return OneDnnProduct.apply(x, self.weight, self.bias)


def use_onednn(model: Model) -> None:
    """Gives every dense layer of the model, and the tied head, oneDNN's products."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
    model.product = OneDnnProduct.apply


def pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) uint8 -> (B, 3, H, W) in -1 .. 1, mirrored with probability 1/2."""
    turn = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    images = torch.where(turn, images.flip(2), images)
    return (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5


def contrastive(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """UniPT's Eq. 1: both directions averaged, no temperature."""
    cosine = image @ text.T
    right = torch.arange(len(cosine), device=cosine.device)
    return (F.cross_entropy(cosine, right) + F.cross_entropy(cosine.T, right)) / 2


def hide(chosen: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """Chosen ids by BERT's rule: 80% [MASK], 10% a random token, 10% as they are."""
    rule = torch.rand(chosen.shape, device=chosen.device)
    other = torch.randint_like(chosen, tokens.vocabulary)
    return torch.where(rule < 0.8, tokens.mask, torch.where(rule < 0.9, other, chosen))


def allowed(ids: torch.Tensor, tokens: Tokens) -> torch.Tensor:
    """True for what may be masked."""
    return (ids != tokens.pad) & (ids != tokens.cls) & (ids != tokens.sep)


def plain_loss(
    model: Model,
    images: torch.Tensor,
    ids: torch.Tensor,
    *,
    tokens: Tokens,
    rate: float,
) -> torch.Tensor:
    """The method as it stands: two passes of the text tower, the head over every place."""
    mask = ids != tokens.pad
    image = model.embed_image(model.image_features(pixels(images)))
    text = model.embed_text(model.text_features(ids, mask), mask)
    chosen = (torch.rand(ids.shape, device=ids.device) < rate) & allowed(ids, tokens)
    masked = torch.where(chosen, hide(ids, tokens), ids)
    targets = ids.masked_fill(~chosen, -100)
    logits = model.mlm_logits(model.text_features(masked, mask))
    mlm = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())
    return contrastive(image, text) + mlm


def expert_loss(
    model: Model,
    images: torch.Tensor,
    ids: torch.Tensor,
    *,
    tokens: Tokens,
    rate: float,
) -> torch.Tensor:
    """One pass of 2B texts, the head where a word is hidden, an exact share of words."""
    mask = ids != tokens.pad
    score = torch.rand(ids.shape, device=ids.device)
    score = score.masked_fill(~allowed(ids, tokens), -1)
    share = (rate * allowed(ids, tokens).sum(1)).round().clamp(min=1)
    slots = max(1, round(rate * (ids.shape[1] - 2)))
    places = score.topk(slots, dim=1).indices  # (B, M)
    used = torch.arange(slots, device=ids.device) < share[:, None]
    targets = ids.gather(1, places)
    masked = ids.scatter(1, places, torch.where(used, hide(targets, tokens), targets))
    image = model.embed_image(model.image_features(pixels(images)))
    both = model.text_features(torch.cat([ids, masked]), torch.cat([mask, mask]))
    clean, hidden = both.chunk(2)
    text = model.embed_text(clean, mask)
    hidden = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
    logits = model.mlm_logits(hidden).flatten(0, 1).float()
    mlm = F.cross_entropy(logits, targets.masked_fill(~used, -100).flatten())
    return contrastive(image, text) + mlm


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's two groups: biases and norms do not decay."""
    vectors = [p for p in model.parameters() if p.ndim == 1]
    others = [p for p in model.parameters() if p.ndim > 1]
    return [
        {"params": others, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def rate_factor(step: int, *, warmup: int, total: int) -> float:
    """Up over `warmup` steps, then linearly to 0: `optim.make_schedule`'s numbers."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, 1 - (step - warmup) / (total - warmup))


class Reference:
    """Model, optimiser and schedule; `step` is one update."""

    def __init__(
        self,
        config,
        kind: str,
        tokens: Tokens,
        *,
        total: int,
        device: str,
        threads: int,
    ) -> None:
        """config: of our pretrain job. total: steps of the schedule.
        kind: "eager", "expert", or "expert_onednn".
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "jax sees a GPU and this PyTorch does not; install a CUDA build of it"
            )
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        self.device, self.dtype = device, DTYPES[config.model.dtype]
        expert = kind != "eager"
        self._memory_before = torch.cuda.memory_allocated() if device == "cuda" else 0
        model = Model(config.model.to_dict(), tokens, "sdpa" if expert else "eager")
        self.model = model.to(device).train()
        options = config.optimiser
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.model, options.weight_decay),
            lr=config.lr,
            betas=tuple(options.betas),
            eps=options.eps,
            fused=expert or None,
        )
        factor = functools.partial(
            rate_factor, warmup=math.ceil(config.warmup * total), total=total
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, factor)
        loss = expert_loss if expert else plain_loss
        self.loss = functools.partial(loss, tokens=tokens, rate=config.mlm.rate)
        if expert and device == "cuda":
            torch.set_float32_matmul_precision("high")
            self.loss = torch.compile(self.loss)
        elif kind == "expert_onednn" and self.dtype == torch.float32:
            use_onednn(self.model)

    def step(self, batch: tuple[np.ndarray, np.ndarray], wait: bool) -> float | None:
        """One update from (B, H, W, 3) uint8 and (B, L) ids; its loss, if waited for."""
        images = torch.from_numpy(batch[0]).to(self.device, non_blocking=True)
        ids = torch.from_numpy(batch[1]).long().to(self.device, non_blocking=True)
        self.optimiser.zero_grad(set_to_none=True)
        with self._precision():
            loss = self.loss(self.model, images, ids)
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        if not wait:
            return None
        if self.device == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device, self.dtype)

    def peak_gib(self) -> float | None:
        """The most memory that this one held on the GPU; None on a CPU."""
        if self.device != "cuda":
            return None
        peak = torch.cuda.max_memory_allocated() - self._memory_before
        torch.cuda.reset_peak_memory_stats()
        return round(peak / 2**30, 2)
