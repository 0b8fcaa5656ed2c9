"""UniPT's pre-training step in PyTorch, from transformers' modules: what ours races.

In: uint8 images and padded token ids. Out: one AdamW update and its loss. The ways, all
from random weights, with the same losses, dropout and pixels:

- `eager`, the method as it is stated: two passes of the text tower over texts padded to
  100, the MLM head over every place, attention written out.
- `expert` knows every trick that ours does: short texts, one pass of the text tower over
  clean and masked ones, the head on masked places alone; with PyTorch's fused attention
  and AdamW. On a GPU it is compiled, float32 products are TF32's, and batches come from
  pinned memory. On a CPU, dropout is that of `torch_tricks`; in bfloat16 the image tower's
  attention is written out, since the fused one took 0.6 s of a step of 3.3 s more; it is
  not compiled, which gained nothing.
- `expert_onednn` is that with the dense layers of `torch_tricks`: float32, on a CPU.
- `released`, the way of the code that the paper's authors published (ZhiyinShao-H/UniPT,
  vilt/modules): each of the two losses has a forward pass of both towers, so the image
  tower runs twice, and the one for MLM serves no loss; texts padded to 100, padding in
  the maximum; an MLM head of its own over all 100 places; attention written out, plain
  AdamW, nothing compiled. Left out is what that code does beyond the paper, in each of
  its two passes: a masked-feature loss with its encoder, decoder and a frozen CLIP. So
  the released code itself is slower. It has fp16, here it has the dtype of the others.
"""

import contextlib
import functools
import math
from collections.abc import Mapping
from typing import Any

from benchmarks.contestants import Tokens
from unipt_jax.errors import UserError

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
    from transformers import BertConfig, BertModel, ViTConfig, ViTModel
    from transformers.activations import GELUActivation
    from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

    from benchmarks import torch_tricks
except ImportError as error:
    raise UserError(
        f"this benchmark needs PyTorch and transformers ({error}); install them with "
        "pip install '.[torch]'"
    ) from error

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Model(nn.Module):
    """transformers' ViT and BERT, projections to one space and the MLM head."""

    def __init__(
        self,
        model: Mapping[str, Any],
        tokens: Tokens,
        *,
        attention: tuple[str, str] = ("eager", "eager"),
        tied: bool = True,
    ):
        """model: a config's `model` section. attention: transformers' names for it, of
        the image and of the text tower. tied: MLM's kernel is the token embedding.
        """
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
        self.image.set_attn_implementation(attention[0])
        self.text.set_attn_implementation(attention[1])
        self.image_projection = nn.Linear(image["features"], model["embedding"])
        self.text_projection = nn.Linear(text["features"], model["embedding"])
        self.mlm_transform = BertPredictionHeadTransform(config)
        self.mlm_bias = nn.Parameter(torch.zeros(tokens.vocabulary))
        embedding = self.text.get_input_embeddings().weight
        self.mlm_kernel = (
            embedding if tied else nn.Parameter(embedding.detach().clone())
        )

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) -> (B, N, D)."""
        return self.image(pixels).last_hidden_state

    def text_features(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, L) ids and their mask -> (B, L, D)."""
        return self.text(tokens, attention_mask=mask).last_hidden_state

    def embed_image(self, features: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, P), rows of length 1."""
        return F.normalize(self.image_projection(features).amax(1).float(), dim=-1)

    def embed_text(
        self, features: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """(B, L, D) -> (B, P), rows of length 1; with a mask padding takes no part."""
        x = self.text_projection(features)
        if mask is not None:
            x = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min)
        return F.normalize(x.amax(1).float(), dim=-1)

    def mlm_logits(self, features: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V)."""
        hidden = self.mlm_transform(features)
        return self.product(hidden, self.mlm_kernel, self.mlm_bias)

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


def guess_all(
    model: Model, ids: torch.Tensor, *, tokens: Tokens, rate: float
) -> torch.Tensor:
    """MLM in a pass of its own: a coin for each word, the head over every place."""
    mask = ids != tokens.pad
    chosen = (torch.rand(ids.shape, device=ids.device) < rate) & allowed(ids, tokens)
    masked = torch.where(chosen, hide(ids, tokens), ids)
    targets = ids.masked_fill(~chosen, -100)
    logits = model.mlm_logits(model.text_features(masked, mask))
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


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
    return contrastive(image, text) + guess_all(model, ids, tokens=tokens, rate=rate)


def released_loss(
    model: Model,
    images: torch.Tensor,
    ids: torch.Tensor,
    *,
    tokens: Tokens,
    rate: float,
) -> torch.Tensor:
    """A forward pass of both towers a loss; that of the image in MLM serves none."""
    seen = pixels(images)
    model.embed_image(model.image_features(seen))
    mlm = guess_all(model, ids, tokens=tokens, rate=rate)
    image = model.embed_image(model.image_features(seen))
    text = model.embed_text(model.text_features(ids, ids != tokens.pad), None)
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


LOSSES = {
    "eager": plain_loss,
    "released": released_loss,
    "expert": expert_loss,
    "expert_onednn": expert_loss,
}


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
        compiled: str = "default",
    ) -> None:
        """config: of our pretrain job. kind: of `LOSSES`. total: steps of the schedule.
        compiled: torch.compile's mode, for an expert on a GPU.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise UserError(
                "jax sees a GPU and this PyTorch does not; install a CUDA build of it"
            )
        torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        self.device, self.dtype = device, DTYPES[config.model.dtype]
        self.expert = kind.startswith("expert")
        self._memory_before = torch.cuda.memory_allocated() if device == "cuda" else 0
        self.model = self._build(config, kind, tokens).to(device).train()
        options = config.optimiser
        self.optimiser = torch.optim.AdamW(
            decay_groups(self.model, options.weight_decay),
            lr=config.lr,
            betas=tuple(options.betas),
            eps=options.eps,
            fused=self.expert or None,
        )
        factor = functools.partial(
            rate_factor, warmup=math.ceil(config.warmup * total), total=total
        )
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, factor)
        self.loss = functools.partial(LOSSES[kind], tokens=tokens, rate=config.mlm.rate)
        if self.expert and device == "cuda":
            # Else a second length of texts would be compiled for lengths of any kind.
            self.loss = torch.compile(self.loss, mode=compiled, dynamic=False)

    def _build(self, config, kind: str, tokens: Tokens) -> Model:
        on_cpu = self.device == "cpu"
        attention = "eager", "eager"
        if self.expert:
            slow = on_cpu and self.dtype == torch.bfloat16
            attention = "eager" if slow else "sdpa", "sdpa"
        model = Model(
            config.model.to_dict(),
            tokens,
            attention=attention,
            tied=kind != "released",
        )
        if self.expert and on_cpu:
            torch_tricks.use_cheap_dropout(model)
        if kind == "expert_onednn":
            torch_tricks.use_onednn(model)
        return model

    def prepare(self, batch: tuple) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, H, W, 3) uint8 and (B, L) ids of numpy as a DataLoader hands them over."""
        images, ids = torch.from_numpy(batch[0]), torch.from_numpy(batch[1]).long()
        if self.device == "cuda":
            images, ids = images.pin_memory(), ids.pin_memory()
        return images, ids

    def step(self, batch: tuple[torch.Tensor, torch.Tensor], wait: bool):
        """One update from what `prepare` gives; its loss, if waited for."""
        images, ids = (x.to(self.device, non_blocking=True) for x in batch)
        if self.device == "cuda":  # float32 by TF32, or as PyTorch has it
            torch.set_float32_matmul_precision("high" if self.expert else "highest")
        with self._precision():
            loss = self.loss(self.model, images, ids)
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad(set_to_none=True)  # now: others need the memory
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
