"""The dual encoder: pixels and tokens in, unit vectors of one shared space out.

UniPT's way: each tower's token features pass a Dense layer to the shared width (a 1x1
convolution in the paper), then a maximum over tokens; the unit vector of that is the
embedding. CLIP's way: one token stands for all, and the projections have no bias.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from unipt_jax.errors import UserError
from unipt_jax.models import bert, clip, layers, vit
from unipt_jax.models.interaction import Interaction
from unipt_jax.models.pgu import PartClassifiers, Pgu

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
ATTENTION = ("auto", "xla", "cudnn")
TEXT_TOWERS = {"bert": bert.Bert, "clip": clip.ClipText}
NO_PGU = {"parts": 0}
NO_INTERACTION = {"layers": 0}
# Parts that only training needs: a model is used without them.
TRAINING = ("mlm_head", "classifier", "part_classifiers")
TRAINING += ("interaction", "cross_mlm_head", "logit_bias")
CHOICES = {
    "pool": ("max", "token"),
    "temperature": ("none", "fixed", "learned"),
    "bias": ("none", "learned"),
    "mlm_output": ("tied", "untied", "none"),
    "retrieval": ("global", "pgu", "both"),
}


def max_pool(features: jax.Array, mask: jax.Array | None) -> jax.Array:
    """The maximum over tokens: (B, S, P) -> (B, P); mask (B, S) leaves tokens out."""
    if mask is not None:
        lowest = jnp.finfo(features.dtype).min
        features = jnp.where(mask[..., None], features, lowest)
    return features.max(axis=1)


def unit(x: jax.Array) -> jax.Array:
    """Rows of length 1, in float32. A row of zeros stays zero, with a zero gradient."""
    x = x.astype(jnp.float32)
    square = jnp.sum(x * x, axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.maximum(square, 1e-24))
    return x * jnp.where(square > 1e-24, inverse, 0)


class DualEncoder(nn.Module):
    """An image and a text tower with projections to one space, and the MLM head.

    embedding: width P of the shared space. pool: "max" over token features, or "token",
    the class token of the image and CLIP's end-of-text token ([CLS] of a BERT).
    pool_padding: let padding into the maximum over text tokens, as the released code
    does. pool_special: let the class tokens, [CLS] and [SEP] into the maximum.
    projection_bias: CLIP's projections have none. temperature: "none" (the paper's
    Eq. 1), "fixed" or "learned"; temperature_init is its value or where it starts.
    bias: of the sigmoid loss, "none" or "learned"; bias_init is where it starts.
    mlm_output: the MLM head's last product is with the token embedding ("tied"), with a
    kernel of its own ("untied"), or there is no such head ("none"). pgu: reads features
    of parts off the tokens, or None. retrieval: the embedding is the "global" one, the
    parts joined ("pgu"), or "both" side by side. identities: classes of the identity
    classifiers, one for both towers' summaries and one for each part; 0: none.
    interaction: reads the image's tokens for masked words, with an MLM head of its own,
    or None. pad, cls, sep: token ids; where pad is sep, as with CLIP, all after the
    first sep is padding.
    """

    image: vit.ViT
    text: bert.Bert | clip.ClipText
    embedding: int
    pad: int
    cls: int
    sep: int
    pool: str = "max"
    pool_padding: bool = False
    pool_special: bool = True
    projection_bias: bool = True
    temperature: str = "none"
    temperature_init: float = 0.07
    bias: str = "none"
    bias_init: float = -10.0
    mlm_output: str = "tied"
    pgu: Pgu | None = None
    retrieval: str = "global"
    identities: int = 0
    interaction: Interaction | None = None
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise UserError(
                    f"{field} '{getattr(self, field)}' is not one of "
                    + ", ".join(allowed)
                )
        if self.retrieval != "global" and self.pgu is None:
            raise UserError(
                f"retrieval '{self.retrieval}' needs a PGU; set pgu.parts (the paper "
                "has 6), or retrieval to 'global'"
            )
        dense = dict(use_bias=self.projection_bias, dtype=self.dtype)
        self.image_projection = layers.Dense(self.embedding, **dense)
        self.text_projection = layers.Dense(self.embedding, **dense)
        if self.mlm_output != "none":
            self.mlm_head = bert.MlmHead(
                self.text.vocabulary,
                self.mlm_output == "tied",
                self.text.norm_eps,
                self.dtype,
            )
        if self.identities:
            # float32: the logits of thousands of identities lie close together.
            self.classifier = layers.Dense(
                self.identities, kernel_init=layers.classifier_init
            )
            if self.pgu is not None:
                self.part_classifiers = PartClassifiers(self.identities)
        if self.interaction is not None:
            self.cross_mlm_head = bert.MlmHead(
                self.text.vocabulary, False, self.text.norm_eps, self.dtype
            )
        if self.temperature == "learned":
            log_scale = jnp.log(jnp.float32(1 / self.temperature_init))
            self.log_scale = self.param("log_scale", lambda _: log_scale)
        if self.bias == "learned":
            bias = jnp.float32(self.bias_init)
            self.logit_bias = self.param("logit_bias", lambda _: bias)

    def real(self, tokens: jax.Array) -> jax.Array:
        """(B, L) ids -> (B, L), False on padding."""
        if self.pad != self.sep:
            return tokens != self.pad
        ends = (tokens == self.sep).astype(jnp.int32)
        return jnp.cumsum(ends, axis=1) - ends == 0

    def text_features(self, tokens: jax.Array, rows: jax.Array | None) -> jax.Array:
        """(B, L) ids -> (B, L, D): the text tower's token features."""
        return self.text(tokens, self.real(tokens), rows)

    def summarise_text(self, features: jax.Array, tokens: jax.Array) -> jax.Array:
        """(B, L, D) features of (B, L) ids -> (B, P), of any length."""
        if self.pool == "token":
            summary = self.sep if isinstance(self.text, clip.ClipText) else self.cls
            place = jnp.argmax(tokens == summary, axis=1)  # the first one
            chosen = jnp.take_along_axis(features, place[:, None, None], axis=1)
            return self.text_projection(chosen[:, 0])
        mask = jnp.ones(tokens.shape, bool)
        if not self.pool_padding:
            mask &= self.real(tokens)
        if not self.pool_special:
            mask &= (tokens != self.cls) & (tokens != self.sep)
        return max_pool(self.text_projection(features), mask)

    def summarise_image(self, features: jax.Array) -> jax.Array:
        """(B, N, D) features -> (B, P), of any length."""
        if self.pool == "token":
            return self.image_projection(features[:, 0])
        if not self.pool_special:
            features = features[:, self.image.prefix :]
        return max_pool(self.image_projection(features), None)

    def pool_text(self, features: jax.Array, tokens: jax.Array) -> jax.Array:
        """(B, L, D) features of (B, L) ids -> (B, P) unit vectors in float32."""
        return unit(self.summarise_text(features, tokens))

    def pool_image(self, features: jax.Array) -> jax.Array:
        """(B, N, D) features -> (B, P) unit vectors in float32."""
        return unit(self.summarise_image(features))

    def image_features(self, pixels: jax.Array, rows: jax.Array | None) -> jax.Array:
        """(B, H, W, 3) normalised pixels -> (B, N, D): the image tower's tokens."""
        return self.image(pixels, rows)

    def classify(self, summary: jax.Array) -> jax.Array:
        """(B, P) summary of either tower -> (B, identities) logits in float32."""
        return self.classifier(summary.astype(jnp.float32))

    def classify_parts(self, parts: jax.Array) -> jax.Array:
        """(B, parts, F) of either tower -> (B, parts, identities) logits in float32."""
        return self.part_classifiers(parts)

    def image_parts(self, features: jax.Array) -> jax.Array:
        """(B, N, D) features -> (B, parts, F): the PGU's, off the patches alone."""
        features = features[:, self.image.prefix :]
        if self.pgu.tokens == "projected":
            features = self.image_projection(features)
        return self.pgu(features, None)

    def text_parts(self, features: jax.Array, tokens: jax.Array) -> jax.Array:
        """(B, L, D) features of (B, L) ids -> (B, parts, F): padding is not read."""
        if self.pgu.tokens == "projected":
            features = self.text_projection(features)
        return self.pgu(features, self.real(tokens))

    def embed(self, pooled: jax.Array, parts: Callable[[], jax.Array]) -> jax.Array:
        """(B, P) pooled and (B, parts, F) -> the unit vectors that retrieval asks for."""
        if self.retrieval == "global":
            return pooled
        joined = unit(parts().reshape(len(pooled), -1))
        if self.retrieval == "pgu":
            return joined
        return unit(jnp.concatenate([pooled, joined], axis=-1))

    def encode_image(
        self, pixels: jax.Array, rows: jax.Array | None = None
    ) -> jax.Array:
        """(B, H, W, 3) normalised pixels -> (B, P) unit vectors in float32.

        P is `width`: of the global embedding, of the joined parts, or of both.
        """
        features = self.image(pixels, rows)
        pooled = self.pool_image(features)
        return self.embed(pooled, lambda: self.image_parts(features))

    def encode_text(
        self, tokens: jax.Array, rows: jax.Array | None = None
    ) -> jax.Array:
        """(B, L) token ids, padded with `pad` -> (B, P) unit vectors in float32."""
        features = self.text_features(tokens, rows)
        pooled = self.pool_text(features, tokens)
        return self.embed(pooled, lambda: self.text_parts(features, tokens))

    @property
    def width(self) -> int:
        """Width of the vectors that `encode_image` and `encode_text` give."""
        joined = self.pgu.parts * self.pgu.features if self.pgu else 0
        return {
            "global": self.embedding,
            "pgu": joined,
            "both": self.embedding + joined,
        }[self.retrieval]

    def mlm_logits(self, features: jax.Array) -> jax.Array:
        """(..., D) text features -> (..., V) logits in float32."""
        return self.mlm_head(features, self.text.token_embedding.embedding)

    def cross_mlm_logits(
        self,
        text: jax.Array,
        image: jax.Array,
        tokens: jax.Array,
        places: jax.Array,
        rows: jax.Array | None,
    ) -> jax.Array:
        """Guesses masked words from the sentence and the picture (IRRA's MLM).

        text: (B, L, D) features of the masked ids in tokens (B, L). image: (B, N, D)
        features. places: (B, M) -> (B, M, V) logits in float32.
        """
        text, image = self.text_projection(text), self.image_projection(image)
        read = self.interaction(text, image, self.real(tokens), rows)
        chosen = jnp.take_along_axis(read, places[..., None], axis=1)
        return self.cross_mlm_head(chosen, self.text.token_embedding.embedding)

    def scale(self) -> jax.Array:
        """What cosines are multiplied by before the softmax: one over temperature."""
        if self.temperature == "learned":
            return jnp.exp(jnp.minimum(self.log_scale, jnp.log(100.0)))
        fixed = 1 / self.temperature_init if self.temperature == "fixed" else 1.0
        return jnp.float32(fixed)

    def shift(self) -> jax.Array:
        """What the sigmoid loss adds to scaled cosines."""
        return self.logit_bias

    def __call__(self, pixels: jax.Array, tokens: jax.Array) -> tuple:
        """Touches every parameter once: for initialisation and tables."""
        seen, read = self.image(pixels, None), self.text_features(tokens, None)
        image, text = self.summarise_image(seen), self.summarise_text(read, tokens)
        logits = () if self.mlm_output == "none" else self.mlm_logits(read)
        parts = ()
        if self.pgu is not None:
            parts = self.image_parts(seen), self.text_parts(read, tokens)
        if self.identities:
            self.classify(image)
            if self.pgu is not None:
                self.classify_parts(parts[0])
        if self.interaction is not None:
            self.cross_mlm_logits(read, seen, tokens, tokens[:, :1] * 0, None)
        return unit(image), unit(text), logits, self.scale(), parts


def build(model: Mapping[str, Any], *, vocabulary: int, pad: int, cls: int, sep: int):
    """The module that a config's `model` section describes. The edge: config ends here.

    vocabulary: number of tokens; pad, cls, sep: their ids in it.
    """
    if model["dtype"] not in DTYPES:
        raise UserError(f"dtype '{model['dtype']}' is not one of {', '.join(DTYPES)}")
    dtype = DTYPES[model["dtype"]]
    image, text = (_attending(model[name], dtype) for name in ("image", "text"))
    image["patch"] = tuple(image["patch"])
    (h, w), (ph, pw) = (image["height"], image["width"]), image["patch"]
    if h % ph or w % pw:
        raise UserError(
            f"images of {h}x{w} are not whole patches of {ph}x{pw}; choose a height and "
            "width that the patch divides"
        )
    kind = text.pop("kind")
    if kind not in TEXT_TOWERS:
        raise UserError(f"text.kind '{kind}' is not one of {', '.join(TEXT_TOWERS)}")
    taken = ("image", "text", "pgu", "interaction", "dtype")
    head = {k: v for k, v in model.items() if k not in taken}
    parts = dict(model.get("pgu") or NO_PGU)
    cross = dict(model.get("interaction") or NO_INTERACTION)
    _check_parts(parts, cross, model)
    return DualEncoder(
        image=vit.ViT(**image, dtype=dtype),
        text=TEXT_TOWERS[kind](**text, vocabulary=vocabulary, dtype=dtype),
        pgu=Pgu(**parts, dtype=dtype) if parts["parts"] else None,
        interaction=Interaction(**cross, dtype=dtype) if cross["layers"] else None,
        **head,
        pad=pad,
        cls=cls,
        sep=sep,
        dtype=dtype,
    )


def _attending(tower: Mapping[str, Any], dtype: Any) -> dict[str, Any]:
    """A tower's fields, with an attention that this machine has.

    "auto" is of training, which measures; "cudnn" may come from another machine's run,
    or from one in 16-bit floats, which cudnn takes alone.
    """
    name = tower.get("attention", "xla")
    if name not in ATTENTION:
        raise UserError(f"attention '{name}' is not one of {', '.join(ATTENTION)}")
    remat = tower.get("remat", "none")
    if remat not in layers.REMAT:
        raise UserError(f"remat '{remat}' is not one of {', '.join(layers.REMAT)}")
    if name == "auto" or jax.default_backend() != "gpu" or dtype == jnp.float32:
        name = "xla"
    return dict(tower) | {"attention": name}


def _check_parts(parts: Mapping, cross: Mapping, model: Mapping[str, Any]) -> None:
    """Raises UserError where the PGU or the interaction encoder cannot be built."""
    if parts["parts"] < 0 or cross["layers"] < 0:
        raise UserError(
            f"pgu.parts={parts['parts']} and interaction.layers={cross['layers']} must "
            "be 0 (none) or more"
        )
    if parts["parts"]:
        widths = model["image"]["features"], model["text"]["features"]
        tokens = parts.get("tokens", "projected")
        if tokens not in ("projected", "tower"):
            raise UserError(f"pgu.tokens '{tokens}' is not one of projected, tower")
        if tokens == "tower" and widths[0] != widths[1]:
            raise UserError(
                f"pgu.tokens=tower needs two towers of one width, here are {widths[0]} "
                f"and {widths[1]}; use pgu.tokens=projected"
            )
    if cross["layers"] and model["embedding"] % cross["heads"]:
        raise UserError(
            f"interaction.heads={cross['heads']} must divide the embedding, "
            f"{model['embedding']}"
        )


def section(model: DualEncoder) -> dict[str, Any]:
    """The `model` section of a config from which `build` makes this module."""

    def fields(module: nn.Module, *without: str) -> dict[str, Any]:
        hidden = {"parent", "name", "dtype", *without}
        names = [f.name for f in dataclasses.fields(module) if f.name not in hidden]
        return {name: getattr(module, name) for name in names}

    kinds = {tower: kind for kind, tower in TEXT_TOWERS.items()}
    text = {"kind": kinds[type(model.text)]} | fields(model.text, "vocabulary")
    head = fields(model, "image", "text", "pgu", "interaction", "pad", "cls", "sep")
    head["pgu"] = fields(model.pgu) if model.pgu else NO_PGU
    cross = fields(model.interaction) if model.interaction else NO_INTERACTION
    head["interaction"] = cross
    dtypes = {dtype: name for name, dtype in DTYPES.items()}
    towers = {"image": fields(model.image), "text": text}
    return towers | head | {"dtype": dtypes[model.dtype]}


def initialise(model: DualEncoder, key: jax.Array) -> Any:
    """Random float32 parameters, drawn the same on any number of devices."""
    pixels = jnp.zeros((1, model.image.height, model.image.width, 3), jnp.float32)
    tokens = jnp.full((1, 4), model.cls, jnp.int32)
    return model.init(key, pixels, tokens)["params"]
