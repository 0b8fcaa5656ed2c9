"""Others' networks, small and random, and what it takes to compare them with ours.

timm's ViT and OpenAI's CLIP are written here from PyTorch's parts, under the names that
these libraries give their tensors; the rest is transformers' own.
"""

import collections
import json
import math

import helpers
import numpy as np
import pytest
from flax import traverse_util

from configs import common
from unipt_jax import start, transfer
from unipt_jax.models import unipt

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
nn, F = torch.nn, torch.nn.functional
transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()

IDS = dict(pad=helpers.PAD, cls=helpers.CLS, sep=helpers.SEP)
VOCABULARY = helpers.VOCABULARY
# CLIP's: the end of a text has the highest id, and fills it up.
CLIP_IDS = dict(pad=VOCABULARY - 1, cls=VOCABULARY - 2, sep=VOCABULARY - 1)
IGNORE = tuple(common.init().ignore)
COUNTS = [9, 1, 5]  # words in each text, of 12 tokens: two rows are padded
BERT_TOKENS = helpers.texts(COUNTS, 12)


def clip_tokens(counts=COUNTS, length=12, seed=0, ids=CLIP_IDS, words=range(4, 20)):
    """(B, L) rows of start, counts[i] words, end, and more ends for padding."""
    rng = np.random.default_rng(seed)
    tokens = np.full((len(counts), length), ids["pad"], np.int32)
    for row, n in zip(tokens, counts, strict=True):
        row[0], row[n + 1] = ids["cls"], ids["sep"]
        row[1 : n + 1] = rng.choice(words, n)
    return tokens


def real(counts=COUNTS, length=12):
    """(B, L), False on padding."""
    return np.arange(length) < np.array(counts)[:, None] + 2


# --- ours ----------------------------------------------------------------------------


def tower(seed, layers=0):
    """Sizes of a small tower."""
    rng = np.random.default_rng(seed)
    heads, width, depth = rng.integers((1, 2, 1), (4, 6, 4)).tolist()
    hidden = int(rng.integers(9, 40))
    features = 4 * heads * width
    return dict(
        features=features, heads=heads, hidden=hidden, layers=layers or depth + 1
    )


def dual(image=(), text=(), vocabulary=VOCABULARY, ids=IDS, **head):
    """Our pair in float32; what is not named is as in `helpers.config`."""
    section = helpers.config(image=image, text=text, **head)
    return unipt.build(section, vocabulary=vocabulary, **ids)


def clip(image, text, activation="quick_gelu", **changes):
    """Our CLIP of those sizes."""
    more = dict(activation=activation, norm_eps=1e-5)
    fields = dict(
        image=dict(image) | more | dict(pre_norm=True, patch_bias=False),
        text=dict(kind="clip", positions=16) | text | more,
        pool="token",
        projection_bias=False,
        temperature="learned",
        mlm_output="none",
        ids=CLIP_IDS,
    )
    return dual(**(fields | changes))


def take(tensors, model, *parts, ignore=IGNORE, source="the test", **options):
    """`transfer.to_ours`, for some parts of a model ("image", "text" ...) or all."""
    wanted = start.shapes(model)
    if parts:
        wanted = {p: s for p, s in wanted.items() if p.split("/")[0] in parts}
    return transfer.to_ours(
        tensors,
        wanted,
        transfer.Geometry.of(model.image),
        source=source,
        options=transfer.Options(ignore=ignore, **options),
    )


def load(tensors, model, *parts, **options):
    """The nested parameters that `take` gives."""
    params = take(tensors, model, *parts, **options).params
    return traverse_util.unflatten_dict(params, sep="/")


def image_features(model, params, pixels):
    return helpers.apply(model.image, params["image"], None, pixels, None)


def text_features(model, params, tokens):
    return helpers.apply(model, params, "text_features", tokens, None)


def assert_near(ours, theirs, limit):
    """Every entry within `limit`; prints the largest difference."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype == np.float32
    worst, size = np.abs(ours - theirs).max(), np.abs(theirs).max()
    print(f"largest difference {worst:.1e} among values up to {size:.2g}")
    assert size > 0.05  # else there is nothing to compare
    assert worst <= limit


def same(a, b):
    """Two dicts of arrays, equal to the bit."""
    assert a.keys() == b.keys()
    for name, x in a.items():
        np.testing.assert_array_equal(x, b[name], strict=True)


# --- theirs --------------------------------------------------------------------------


def randomise(module, seed=0):
    """Every parameter random: biases of 0 and scales of 1 would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, x in module.named_parameters():
            kernel = x.ndim == 4 or (x.ndim == 2 and "embedding" not in name)
            size = 1 / math.sqrt(x[0].numel()) if kernel else 0.3
            x.add_(size * torch.randn(x.shape, generator=generator))
    return module.eval()


def arrays(module):
    """A state dict of numpy arrays, which share no memory."""
    return {name: x.numpy().copy() for name, x in module.state_dict().items()}


def tensor(pixels):
    """(B, H, W, 3) -> (B, 3, H, W)."""
    return torch.tensor(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))


def run(module, *inputs, **options):
    """A network's output without gradients."""
    with torch.no_grad():
        return module(*inputs, **options)


def read(module, tokens, mask):
    """What transformers' text network gives for (B, L) tokens."""
    mask = torch.tensor(mask.astype(np.int64))
    tokens = torch.tensor(tokens.astype(np.int64))
    return run(module, input_ids=tokens, attention_mask=mask)


def sizes(ours):
    """A tower's sizes in transformers' words."""
    return dict(
        hidden_size=ours["features"],
        num_hidden_layers=ours["layers"],
        num_attention_heads=ours["heads"],
        intermediate_size=ours["hidden"],
    )


def vit_config(kind, ours, size, patch=8):
    return kind(**sizes(ours), image_size=size, patch_size=patch)


def bert_config(ours, positions=20, vocabulary=VOCABULARY, **more):
    return transformers.BertConfig(
        **sizes(ours), max_position_embeddings=positions, vocab_size=vocabulary, **more
    )


def clip_configs(image, text, side, patch, width, activation="quick_gelu", **more):
    """transformers' configs of the two towers."""
    both = dict(hidden_act=activation, projection_dim=width)
    text_fields = dict(
        vocab_size=VOCABULARY,
        max_position_embeddings=16,
        pad_token_id=CLIP_IDS["pad"],
        bos_token_id=CLIP_IDS["cls"],
        eos_token_id=CLIP_IDS["sep"],
    )
    return (
        transformers.CLIPVisionConfig(
            **sizes(image), image_size=side, patch_size=patch, **both
        ),
        transformers.CLIPTextConfig(**sizes(text), **(text_fields | more), **both),
    )


def clip_model(vision, text, seed=0):
    """transformers' CLIPModel with random parameters."""
    config = transformers.CLIPConfig(
        vision_config=vision.to_dict(),
        text_config=text.to_dict(),
        projection_dim=vision.projection_dim,
    )
    return randomise(transformers.CLIPModel(config), seed)


# --- timm's ViT ----------------------------------------------------------------------


class TimmAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        parts = self.qkv(x).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in parts)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class TimmBlock(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = TimmAttention(width, heads)
        layers = dict(fc1=nn.Linear(width, hidden), fc2=nn.Linear(hidden, width))
        self.mlp = nn.ModuleDict(layers)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class TimmVit(nn.Module):
    """(B, 3, H, W) -> (B, N, D). classes: of the heads, 0 for none."""

    def __init__(self, ours, grid, patch, distilled=False, classes=0, pre_norm=False):
        super().__init__()
        width, prefix = ours["features"], 1 + distilled
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
        number = prefix + math.prod(grid)
        self.pos_embed = nn.Parameter(torch.zeros(1, number, width))
        bias = not pre_norm  # as in timm's ViTs of CLIP
        conv = nn.Conv2d(3, width, patch, stride=patch, bias=bias)
        self.patch_embed = nn.ModuleDict(dict(proj=conv))
        self.norm_pre = nn.LayerNorm(width, eps=1e-6) if pre_norm else nn.Identity()
        self.blocks = nn.Sequential(
            *(
                TimmBlock(width, ours["heads"], ours["hidden"])
                for _ in range(ours["layers"])
            )
        )
        self.norm = nn.LayerNorm(width, eps=1e-6)
        if classes:
            self.head = nn.Linear(width, classes)
            if distilled:
                self.head_dist = nn.Linear(width, classes)

    def forward(self, pixels):
        x = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)
        tokens = [
            getattr(self, n) for n in ("cls_token", "dist_token") if hasattr(self, n)
        ]
        x = torch.cat([*(t.expand(len(x), -1, -1) for t in tokens), x], 1)
        return self.norm(self.blocks(self.norm_pre(x + self.pos_embed)))


# --- OpenAI's CLIP -------------------------------------------------------------------


class ClipBlock(nn.Module):
    def __init__(self, width, heads, hidden, quick):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads, batch_first=True)
        layers = dict(c_fc=nn.Linear(width, hidden), c_proj=nn.Linear(hidden, width))
        self.mlp, self.quick = nn.ModuleDict(layers), quick

    def forward(self, x, mask):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.mlp["c_fc"](self.ln_2(x))
        y = y * torch.sigmoid(1.702 * y) if self.quick else F.gelu(y)
        return x + self.mlp["c_proj"](y)


class ClipTransformer(nn.Module):
    def __init__(self, ours, quick):
        super().__init__()
        sizes = ours["features"], ours["heads"], ours["hidden"]
        blocks = (ClipBlock(*sizes, quick) for _ in range(ours["layers"]))
        self.resblocks = nn.ModuleList(blocks)

    def forward(self, x, mask=None):
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ClipVisual(nn.Module):
    """(B, 3, H, W) -> (B, N, D) after the last norm."""

    def __init__(self, ours, grid, patch, width, quick):
        super().__init__()
        d = ours["features"]
        self.conv1 = nn.Conv2d(3, d, patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(d))
        self.positional_embedding = nn.Parameter(torch.zeros(math.prod(grid) + 1, d))
        self.ln_pre, self.ln_post = nn.LayerNorm(d), nn.LayerNorm(d)
        self.transformer = ClipTransformer(ours, quick)
        self.proj = nn.Parameter(torch.zeros(d, width))

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(x), 1, -1)
        x = torch.cat([first, x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x)))


class OpenAiClip(nn.Module):
    """Pixels and tokens -> features of each tower, unit vectors of each, the scale."""

    def __init__(
        self, image, text, grid, patch, width, quick=True, words=VOCABULARY, length=16
    ):
        super().__init__()
        d = text["features"]
        self.visual = ClipVisual(image, grid, patch, width, quick)
        self.transformer = ClipTransformer(text, quick)
        self.token_embedding = nn.Embedding(words, d)
        self.positional_embedding = nn.Parameter(torch.zeros(length, d))
        self.ln_final = nn.LayerNorm(d)
        self.text_projection = nn.Parameter(torch.zeros(d, width))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, pixels, tokens):
        seen = self.visual(pixels)
        length = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:length]
        mask = torch.full((length, length), -math.inf).triu(1)
        said = self.ln_final(self.transformer(x, mask))
        end = said[torch.arange(len(tokens)), tokens.argmax(-1)]
        units = (
            F.normalize(seen[:, 0] @ self.visual.proj, dim=-1),
            F.normalize(end @ self.text_projection, dim=-1),
        )
        return seen, said, *units, self.logit_scale.exp()


# --- the released UniPT code ---------------------------------------------------------


def released(vit, bert, width, seed=0):
    """The tensors of a run of that code: a timm ViT, a BERT, heads, and the rest."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    words, text = bert.embeddings.word_embeddings.weight.shape
    image = vit.pos_embed.shape[-1]
    heads = {
        "img_proj": (width, image),
        "txt_proj": (width, text),
        "mlm_score.transform.dense": (text, text),
    }
    out = {f"transformer.{name}": x for name, x in arrays(vit).items()}
    out |= {f"text_model.{name}": x for name, x in arrays(bert).items()}
    for name, shape in heads.items():
        out |= {f"{name}.weight": draw(*shape), f"{name}.bias": draw(shape[0])}
    norm = "mlm_score.transform.LayerNorm"
    out |= {f"{norm}.weight": draw(text), f"{norm}.bias": draw(text)}
    out |= {
        "mlm_score.decoder.weight": draw(words, text),
        "mlm_score.bias": draw(words),
        "clip.visual.proj": draw(6, 4),
        "clip.logit_scale": draw(),
        "pooler.dense.weight": draw(text, text),
        "pooler.dense.bias": draw(text),
        "token_type_embeddings.weight": draw(2, image),
        "transformer.mask_token": draw(1, 1, image),
        "transformer.decoder_pos_embed": draw(1, 5, image),
        "transformer.decoder.0.attn.qkv.weight": draw(3 * image, image),
        "transformer.decoder.0.norm1.bias": draw(image),
        "transformer.fc_mask.weight": draw(4, image),
        "transformer.fc_mask.bias": draw(4),
    }
    return out


# --- files ---------------------------------------------------------------------------


def write_clip_tokenizer(folder, merges=("r e", "re d</w>")):
    """A CLIP tokenizer's files, for words of any letters; returns its vocabulary."""
    seen = [chr(b) for b in range(256) if chr(b).isprintable() and b != ord(" ")]
    letters = seen + [chr(256 + n) for n in range(256 - len(seen))]
    tokens = letters + [letter + "</w>" for letter in letters]
    tokens += [merge.replace(" ", "") for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    ids = collections.OrderedDict(zip(tokens, range(len(tokens)), strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(ids, ensure_ascii=False)
    (folder / "vocab.json").write_text(text, encoding="utf-8")
    lines = "\n".join(["#version: 0.2", *merges, ""])
    (folder / "merges.txt").write_text(lines, encoding="utf-8")
    return ids
