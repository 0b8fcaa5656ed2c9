"""UniPT's pre-training step in PyTorch, from transformers' modules: what ours races.

In: uint8 images and padded token ids. Out: one AdamW update and its loss. Twice: `plain`
writes METHOD.md, section 2, down as it stands; `expert` knows every trick that ours does
and those that PyTorch has of its own. The weights are random.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
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
        return F.linear(self.mlm_transform(features), kernel, self.mlm_bias)


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


def plain_loss(
    model: Model, images: torch.Tensor, ids: torch.Tensor, *, tokens: Tokens, rate: float
) -> torch.Tensor:
    """METHOD.md as it stands: two passes of the text tower, the head over every place."""
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
    model: Model, images: torch.Tensor, ids: torch.Tensor, *, tokens: Tokens, rate: float
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
