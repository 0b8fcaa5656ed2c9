"""An exported model in PyTorch: pictures and sentences in, unit vectors of one space out.

This file lies in every exported folder, beside `model.safetensors`, `config.json` and
`tokenizer.json`, and needs nothing but them, torch (2.4 or later), safetensors,
tokenizers, pillow (10.1 or later) and numpy:

    import sys
    from PIL import Image
    sys.path.insert(0, "exported")
    import modeling_unipt

    model = modeling_unipt.load("exported")  # or load("exported", device="cuda")
    gallery = model.encode_image([Image.open("a.jpg"), Image.open("b.jpg")])  # (2, P)
    queries = model.encode_text(["a woman in a red coat with a black bag"])  # (1, P)
    similarity = queries @ gallery.T  # (1, 2) cosines, the higher the better

It is made for eval mode: there is no dropout, and train mode changes nothing. To
fine-tune a model, call `embed_pixels` and `embed_tokens`, which keep gradients.

Axis letters: B batch, H and W pixels, N image tokens, L text tokens, S tokens of
either, D width of a tower, A heads, K width of a head, P width of the shared space,
V vocabulary.
"""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
import safetensors.torch
import tokenizers
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

FORMAT = "unipt_jax export 1"
ORIENTATION = 0x0112  # the EXIF tag; from 2 on, its values ask for these turns:
T = Image.Transpose
TURNS = (T.FLIP_LEFT_RIGHT, T.ROTATE_180, T.FLIP_TOP_BOTTOM, T.TRANSPOSE)
TURN = dict(enumerate((*TURNS, T.ROTATE_270, T.TRANSVERSE, T.ROTATE_90), 2))


def upright_rgb(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF orientation says; transparency is laid on white."""
    # Not ImageOps.exif_transpose: it writes the EXIF block anew, which a single tag of
    # the wrong type stops.
    image.load()  # PIL turns a TIFF here and takes its tag away
    turn = TURN.get(image.getexif().get(ORIENTATION))
    if turn is not None:
        image = image.transpose(turn)
    if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):  # 16-bit and float greyscale
        values = np.asarray(image, np.float32)
        top = 65535.0 if image.mode != "F" else max(float(values.max()), 1e-6)
        image = Image.fromarray((values * (255 / top)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def resize(image: Image.Image, height: int, width: int, fit: str) -> np.ndarray:
    """Any picture -> (height, width, 3) uint8: bicubic with antialiasing.

    fit: "squeeze" does not keep the shape, "crop" covers the target and cuts what hangs
    over on both sides, "pad" fits inside, centred on black.
    """
    image = upright_rgb(image)
    if fit == "squeeze":
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    w, h = image.size
    by_width = (width * h >= height * w) == (fit == "crop")  # else by height
    # Cut, not rounded, as CLIP's preprocessing does.
    w, h = (width, width * h // w) if by_width else (height * w // h, height)
    w, h = max(1, w), max(1, h)
    if fit == "crop":
        left, top = -round((w - width) / 2), -round((h - height) / 2)
    else:
        left, top = (width - w) // 2, (height - h) // 2
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image.resize((w, h), Image.Resampling.BICUBIC), (left, top))
    return np.asarray(canvas)


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": F.gelu, "quick_gelu": quick_gelu, "relu": F.relu}


def layer_norm(tower: dict[str, Any]) -> nn.LayerNorm:
    """A norm of a tower; `tower` is its section of config.json, here and below."""
    return nn.LayerNorm(tower["features"], tower["norm_eps"])


class Attention(nn.Module):
    """Multi-head attention: of tokens to each other, or to `context`."""

    def __init__(self, tower: dict[str, Any]):
        super().__init__()
        self.heads, d = tower["heads"], tower["features"]
        inner = self.heads * tower.get("head_width", d // self.heads)
        self.query, self.key = nn.Linear(d, inner), nn.Linear(d, inner)
        self.value, self.out = nn.Linear(d, inner), nn.Linear(inner, d)

    def forward(
        self, x: Tensor, mask: Tensor | None, context: Tensor | None = None
    ) -> Tensor:
        """x: (B, Q, D). mask: (B, 1, 1 or Q, S), True where a query sees a key.

        context: (B, S, D), the keys; x itself where it is None.
        """
        context = x if context is None else context

        def heads(y: Tensor) -> Tensor:  # (B, S, A * K) -> (B, A, S, K)
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k = heads(self.query(x)), heads(self.key(context))
        v = heads(self.value(context))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, tower: dict[str, Any]):
        super().__init__()
        self.activation = ACTIVATIONS[tower["activation"]]
        self.fc1 = nn.Linear(tower["features"], tower["hidden"])
        self.fc2 = nn.Linear(tower["hidden"], tower["features"])

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)): the block of ViT and of CLIP."""

    def __init__(self, tower: dict[str, Any]):
        super().__init__()
        self.norm1, self.attention = layer_norm(tower), Attention(tower)
        self.norm2, self.mlp = layer_norm(tower), Mlp(tower)

    def forward(
        self, x: Tensor, mask: Tensor | None, context: Tensor | None = None
    ) -> Tensor:
        x = x + self.attention(self.norm1(x), mask, context)
        return x + self.mlp(self.norm2(x))


class PostNormBlock(nn.Module):
    """norm(x + attention(x)), then norm(x + mlp(x)): the block of BERT."""

    def __init__(self, tower: dict[str, Any]):
        super().__init__()
        self.attention, self.attention_norm = Attention(tower), layer_norm(tower)
        self.mlp, self.mlp_norm = Mlp(tower), layer_norm(tower)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention_norm(x + self.attention(x, mask))
        return self.mlp_norm(x + self.mlp(x))


class ViT(nn.Module):
    """Normalised pixels in, token features out; DeiT's and CLIP's kinds too."""

    def __init__(self, tower: dict[str, Any]):
        super().__init__()
        self.height, self.width = tower["height"], tower["width"]
        d, (ph, pw) = tower["features"], tower["patch"]
        self.prefix = 2 if tower["distillation"] else 1  # tokens before the patches
        tokens = self.prefix + (self.height // ph) * (self.width // pw)
        self.class_token = nn.Parameter(torch.empty(1, 1, d))
        if tower["distillation"]:
            self.distillation_token = nn.Parameter(torch.empty(1, 1, d))
        self.position_embedding = nn.Parameter(torch.empty(tokens, d))
        self.patch_embedding = nn.Conv2d(3, d, (ph, pw), bias=tower["patch_bias"])
        self.pre_norm = layer_norm(tower) if tower["pre_norm"] else nn.Identity()
        self.blocks = nn.ModuleList(PreNormBlock(tower) for _ in range(tower["layers"]))
        self.norm = layer_norm(tower)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, N, D), N = class token, distillation token, patches."""
        b, _, h, w = pixels.shape
        if (h, w) != (self.height, self.width):
            size = f"{self.height}x{self.width}"
            raise ValueError(f"pixels are {h}x{w}, not {size}; use preprocess")
        # A product in place of the convolution: on a GPU, torch rounds what enters a
        # float32 convolution to TF32, but not what enters a product.
        weight = self.patch_embedding.weight  # (D, 3, ph, pw)
        x = F.unfold(pixels.to(weight.dtype), weight.shape[2:], stride=weight.shape[2:])
        x = F.linear(x.mT, weight.flatten(1), self.patch_embedding.bias)
        tokens = [self.class_token]
        if self.prefix == 2:
            tokens.append(self.distillation_token)
        x = torch.cat([*(t.expand(b, -1, -1) for t in tokens), x], dim=1)
        x = self.pre_norm(x + self.position_embedding)
        for block in self.blocks:
            x = block(x, None)
        return self.norm(x)


class TextTower(nn.Module):
    """Token ids in, token features out, as BERT does or, causally, as CLIP does."""

    def __init__(self, tower: dict[str, Any], vocabulary: int):
        super().__init__()
        d, self.clip = tower["features"], tower["kind"] == "clip"
        self.token_embedding = nn.Embedding(vocabulary, d)
        self.position_embedding = nn.Embedding(tower["positions"], d)
        if self.clip:
            self.norm = layer_norm(tower)
        else:
            self.type_embedding = nn.Embedding(2, d)
            self.embedding_norm = layer_norm(tower)
        block = PreNormBlock if self.clip else PostNormBlock
        self.blocks = nn.ModuleList(block(tower) for _ in range(tower["layers"]))

    def forward(self, tokens: Tensor, real: Tensor) -> Tensor:
        """tokens: (B, L) ids. real: (B, L), False on padding -> (B, L, D)."""
        length, most = tokens.shape[1], self.position_embedding.num_embeddings
        if length > most:
            raise ValueError(f"{length} tokens in a text, at most {most} fit; cut it")
        x = self.token_embedding(tokens) + self.position_embedding.weight[:length]
        if not self.clip:  # there is no second text, so all tokens are of type 0
            x = self.embedding_norm(x + self.type_embedding.weight[0])
        mask = real[:, None, None, :]  # (B, 1, 1 or L, L): the keys a query may see
        if self.clip:
            mask = mask & mask.new_ones(length, length).tril()
        # A softmax over nothing is NaN in some releases of torch, and NaN times a weight
        # of zero too: a token that may see nothing sees all. No real token sees it.
        mask = mask | ~mask.any(-1, keepdim=True)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x) if self.clip else x


class MlmHead(nn.Module):
    """Linear, GELU, norm, then a product with the vocabulary.

    tied: the product is with the token embedding, otherwise with a weight of its own.
    """

    def __init__(self, tower: dict[str, Any], vocabulary: int, tied: bool):
        super().__init__()
        d = tower["features"]
        self.dense, self.norm = nn.Linear(d, d), layer_norm(tower)
        self.weight = None if tied else nn.Parameter(torch.empty(vocabulary, d))
        self.bias = nn.Parameter(torch.empty(vocabulary))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (..., D) features. embedding: (V, D) -> (..., V) logits."""
        weight = embedding if self.weight is None else self.weight
        return F.linear(self.norm(F.gelu(self.dense(x))), weight, self.bias)


class Pgu(nn.Module):
    """Learned queries read features of parts off the tokens of either tower.

    pgu: its section of config.json. width: of the tokens.
    """

    def __init__(self, pgu: dict[str, Any], width: int):
        super().__init__()
        tower = pgu | {"features": width, "activation": "relu"}
        shape = (pgu["parts"], width)
        self.queries = nn.Parameter(torch.empty(shape))
        self.blocks = nn.ModuleList(PreNormBlock(tower) for _ in range(pgu["layers"]))
        self.norm = layer_norm(tower)
        self.part_projection = nn.Parameter(torch.empty(*shape, pgu["features"]))

    def forward(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """tokens: (B, S, D). real: (B, S), False on padding -> (B, parts * F)."""
        x = self.queries.expand(len(tokens), -1, -1)
        mask = None if real is None else real[:, None, None, :]
        for block in self.blocks:
            x = block(x, mask, tokens)
        # each part by its own projection
        return torch.einsum("bqd,qdf->bqf", self.norm(x), self.part_projection).flatten(
            1
        )


def unit(x: Tensor) -> Tensor:
    """Rows of length 1, in float32. A row of zeros stays zero."""
    x = x.float()
    return x * (x * x).sum(-1, keepdim=True).clamp_min(1e-24).rsqrt()


class UniPT(nn.Module):
    """An image tower, a text tower and their projections to one space.

    config: what config.json holds. tokenizer: gives ids with the special ones. Raises
    ValueError where the config names what is not known here. `load` adds the weights.
    """

    def __init__(self, config: dict[str, Any], tokenizer: tokenizers.Tokenizer):
        super().__init__()
        model, vocabulary = config["model"], config["vocabulary"]
        image, text = model["image"], model["text"]
        _known("image.kind", image.get("kind", "vit"), "vit")
        _known("image.activation", image["activation"], *ACTIVATIONS)
        _known("text.kind", text["kind"], "bert", "clip")
        _known("text.activation", text["activation"], *ACTIVATIONS)
        _known("pool", model["pool"], "max", "token")
        _known("pixels.fit", config["pixels"]["fit"], "squeeze", "crop", "pad")
        self.tokenizer = tokenizer
        self.lengths = sorted(config["lengths"])
        self.pad, self.cls, self.sep = config["pad"], config["cls"], config["sep"]
        # of the text, what stands for all: CLIP's last token has seen the whole of it
        self.summary = self.sep if text["kind"] == "clip" else self.cls
        self.pixels, self.pool = config["pixels"], model["pool"]
        self.pool_padding = model["pool_padding"]
        self.pool_special = model["pool_special"]
        self.embedding, bias = model["embedding"], model["projection_bias"]
        self.image = ViT(image)
        self.text = TextTower(text, vocabulary)
        self.image_projection = nn.Linear(image["features"], self.embedding, bias)
        self.text_projection = nn.Linear(text["features"], self.embedding, bias)
        pgu = model.get("pgu", {"parts": 0})
        self.pgu, self.reads_projected = None, pgu.get("tokens") == "projected"
        if pgu["parts"]:
            width = self.embedding if self.reads_projected else image["features"]
            self.pgu = Pgu(pgu, width)
        self.retrieval = model.get("retrieval", "global")
        _known(
            "retrieval",
            self.retrieval,
            "global",
            *(("pgu", "both") if self.pgu else ()),
        )
        self.mlm_head = None
        if config["heads"] and model["mlm_output"] != "none":
            self.mlm_head = MlmHead(text, vocabulary, model["mlm_output"] == "tied")
        if model["temperature"] == "learned":  # for those who train: exp() it
            self.log_scale = nn.Parameter(torch.empty(()))

    @property
    def device(self) -> torch.device:
        return self.image.class_token.device

    def preprocess(self, image: Image.Image) -> Tensor:
        """Any picture -> (3, H, W) float32 on the CPU, (x / 255 - mean) / std."""
        size = self.image.height, self.image.width
        mean, std = np.array(self.pixels["mean"]), np.array(self.pixels["std"])
        x = resize(image, *size, self.pixels["fit"]).astype(np.float32)
        x = (x - (255 * mean).astype(np.float32)) * (1 / (255 * std)).astype(np.float32)
        return torch.from_numpy(x.transpose(2, 0, 1).copy())  # from (H, W, 3)

    def tokenize(self, texts: list[str]) -> Tensor:
        """Sentences -> (B, L) ids, L the smallest of `lengths` that holds them all.

        A text over the last of `lengths` is cut, and keeps its last token.
        """
        limit = self.lengths[-1]
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]
        rows = [r if len(r) <= limit else r[: limit - 1] + r[-1:] for r in rows]
        longest = max(len(row) for row in rows)
        length = min(length for length in self.lengths if length >= longest)
        return torch.tensor([row + [self.pad] * (length - len(row)) for row in rows])

    def real(self, tokens: Tensor) -> Tensor:
        """(B, L) ids -> (B, L), False on padding."""
        if self.pad != self.sep:
            return tokens != self.pad
        ends = (tokens == self.sep).long()  # the first ends the text, the rest pads it
        return ends.cumsum(1) - ends == 0

    def image_features(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, N, D) of the image tower."""
        return self.image(pixels)

    def text_features(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 ids, padded with `pad` -> (B, L, D) of the text tower."""
        return self.text(tokens, self.real(tokens))

    def pool_image(self, features: Tensor) -> Tensor:
        """(B, N, D) of the image tower -> (B, P) unit vectors: the global embedding."""
        if self.pool == "token":
            return unit(self.image_projection(features[:, 0]))
        if not self.pool_special:
            features = features[:, self.image.prefix :]
        return unit(self.image_projection(features).amax(1))

    def pool_text(self, features: Tensor, tokens: Tensor) -> Tensor:
        """(B, L, D) of the text tower for (B, L) ids -> (B, P) unit vectors."""
        if self.pool == "token":
            place = (tokens == self.summary).long().argmax(1)  # the first one
            rows = torch.arange(len(tokens), device=tokens.device)
            return unit(self.text_projection(features[rows, place]))
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if not self.pool_padding:
            mask = mask & self.real(tokens)
        if not self.pool_special:
            mask = mask & (tokens != self.cls) & (tokens != self.sep)
        x = self.text_projection(features)
        x = x.masked_fill(~mask[..., None], torch.finfo(x.dtype).min).amax(1)
        return unit(x.masked_fill(~mask.any(1, keepdim=True), 0))  # 0: a text of none

    def _embed(self, pooled: Tensor, parts: Callable[[], Tensor]) -> Tensor:
        """What retrieval asks for: the global embedding, the joined parts, or both."""
        if self.retrieval == "global":
            return pooled
        joined = unit(parts())
        return (
            joined if self.retrieval == "pgu" else unit(torch.cat([pooled, joined], 1))
        )

    def embed_pixels(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, P) unit vectors in float32."""
        features = self.image_features(pixels)
        patches = features[:, self.image.prefix :]
        read = self.image_projection if self.reads_projected else nn.Identity()
        pooled = self.pool_image(features)
        return self._embed(pooled, lambda: self.pgu(read(patches), None))

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """(B, L) int64 ids, padded with `pad` -> (B, P) unit vectors in float32."""
        features = self.text_features(tokens)
        read = self.text_projection if self.reads_projected else nn.Identity()
        pooled, real = self.pool_text(features, tokens), self.real(tokens)
        return self._embed(pooled, lambda: self.pgu(read(features), real))

    def mlm_logits(self, features: Tensor) -> Tensor:
        """(..., D) text features -> (..., V) logits of the words that stand there.

        Raises ValueError where the model was exported without this head.
        """
        if self.mlm_head is None:
            raise ValueError("this export has no mlm_head; export it with its heads")
        return self.mlm_head(features, self.text.token_embedding.weight)

    def encode_image(self, images: list[Image.Image], batch_size: int = 64) -> Tensor:
        """PIL images, any size and mode -> (B, P) unit vectors; batch_size at a time."""
        return self._run(images, batch_size, self._stack, self.embed_pixels)

    def encode_text(self, texts: list[str], batch_size: int = 64) -> Tensor:
        """Sentences, cut if too long -> (B, P) unit vectors; batch_size at a time."""
        if isinstance(texts, str):
            raise TypeError(f"encode_text takes a list of texts; write [{texts!r}]")
        return self._run(texts, batch_size, self.tokenize, self.embed_tokens)

    def _stack(self, images: list[Image.Image]) -> Tensor:
        return torch.stack([self.preprocess(image) for image in images])

    @torch.no_grad()
    def _run(self, items: list, size: int, join: Callable, embed: Callable) -> Tensor:
        if size < 1:
            raise ValueError(f"batch_size is {size}; give at least 1")
        parts = self.pgu.part_projection if self.pgu else torch.empty(0, 0, 0)
        joined = parts.shape[0] * parts.shape[2]
        width = {"global": self.embedding, "pgu": joined}
        width = width.get(self.retrieval, self.embedding + joined)
        out = [torch.zeros(0, width, device=self.device)]
        for begin in range(0, len(items), size):
            out.append(embed(join(items[begin : begin + size]).to(self.device)))
        return torch.cat(out)


def _known(field: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ValueError(
            f"{field} '{value}' is not one of {', '.join(allowed)}; use the "
            "modeling_unipt.py that was exported with this model"
        )


def load(folder: str | os.PathLike, device: str | torch.device = "cpu") -> UniPT:
    """The model of an exported folder, in eval mode.

    Raises ValueError where a file is missing or damaged, where the config is of another
    format, and where the weights are not exactly those that the config asks for.
    """
    folder = pathlib.Path(folder)
    config = _read(folder / "config.json", json.loads)
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise ValueError(
            f"{folder}/config.json is not of format '{FORMAT}'; give an exported folder "
            "and use the modeling_unipt.py that lies in it"
        )
    tokenizer = _read(folder / "tokenizer.json", tokenizers.Tokenizer.from_buffer)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    try:
        with torch.device("meta"):  # shapes alone: the weights are put in next
            model = UniPT(config, tokenizer)
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{folder}/config.json lacks what this file needs "
            f"({type(error).__name__}: {error}); export the model again"
        ) from error
    weights = _read(folder / "model.safetensors", safetensors.torch.load)
    _check(folder / "model.safetensors", model.state_dict(), weights)
    model.load_state_dict(weights, assign=True)
    return model.eval().to(device)


def _read(file: pathlib.Path, parse: Callable[[bytes], Any]) -> Any:
    try:
        return parse(file.read_bytes())
    except Exception as error:  # each library has its own for a damaged file
        raise ValueError(
            f"{file} cannot be read ({error}); copy the whole exported folder again"
        ) from error


def _check(file: pathlib.Path, asked: dict, held: dict) -> None:
    """Raises ValueError that lists what is missing and what is unused, with shapes."""
    asked, held = (
        {f"{name} {tuple(x.shape)}" for name, x in tensors.items()}
        for tensors in (asked, held)
    )
    missing, unused = (", ".join(sorted(x)) for x in (asked - held, held - asked))
    if missing or unused:
        raise ValueError(
            f"{file} does not hold what config.json describes (missing: "
            f"{missing or 'none'}; unused: {unused or 'none'}); export the model again"
        )
