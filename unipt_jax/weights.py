"""Names of others' weights: one table, read in both directions.

Enters: tensors as Hugging Face, timm, CLIP, the released UniPT code or our own export
name them. Leaves: our parameters by path; or the other way round. What a layout's rows
do not name is an error, not a guess.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Convert:
    """One tensor of theirs <-> one or more of ours. Both take the patch's (h, w) too."""

    to_ours: Callable[[np.ndarray, tuple[int, int]], tuple[np.ndarray, ...]]
    to_theirs: Callable[[Sequence[np.ndarray], tuple[int, int]], np.ndarray]


def _conv_to_ours(x: np.ndarray, patch: tuple[int, int]) -> tuple[np.ndarray, ...]:
    return (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),)  # (D, 3, h, w)


def _conv_to_theirs(xs: Sequence[np.ndarray], patch: tuple[int, int]) -> np.ndarray:
    return xs[0].reshape(*patch, 3, -1).transpose(3, 2, 0, 1)


SAME = Convert(lambda x, _: (x,), lambda xs, _: xs[0])
KERNEL = Convert(lambda x, _: (x.T,), lambda xs, _: xs[0].T)
CONV = Convert(_conv_to_ours, _conv_to_theirs)
BATCHED = Convert(  # (1, N, D)
    lambda x, _: (x.reshape(x.shape[1:]),), lambda xs, _: xs[0][None]
)
VECTOR = Convert(lambda x, _: (x[None, None],), lambda xs, _: xs[0][0, 0])  # (D,)
SCALAR = Convert(lambda x, _: (x.reshape(()),), lambda xs, _: xs[0])
FUSED_KERNEL = Convert(  # (3D, D)
    lambda x, _: tuple(part.T for part in np.split(x, 3)),
    lambda xs, _: np.concatenate([x.T for x in xs]),
)
FUSED_BIAS = Convert(
    lambda x, _: tuple(np.split(x, 3)), lambda xs, _: np.concatenate(xs)
)


# What a model of ours is made of: the first name of a parameter's path.
PARTS = ("image", "text", "image_projection", "text_projection", "mlm_head", "pgu")
PARTS += ("log_scale", "classifier", "part_classifiers", "interaction")
PARTS += ("cross_mlm_head", "logit_bias")


@dataclasses.dataclass(frozen=True)
class Row:
    """Their name, our paths and what lies between; {i} stands for a block's number."""

    theirs: str
    ours: tuple[str, ...]
    convert: Convert = SAME


@dataclasses.dataclass(frozen=True)
class Layout:
    """A way to name weights.

    signs: names that together tell it from other layouts. rows: the table. copies:
    names of theirs that repeat another of theirs (a tied output layer), left out when
    written. distillation: what DeiT's second token is called, if there can be one.
    named_by_part: every name begins with our part, also one that no row has.
    """

    name: str
    signs: tuple[str, ...]
    rows: tuple[Row, ...]
    copies: tuple[tuple[str, str], ...] = ()
    distillation: str = ""
    named_by_part: bool = False

    @functools.cached_property
    def by_ours(self) -> dict[str, Row]:
        """The row for each of our paths, with {i} for numbers."""
        return {path: row for row in self.rows for path in row.ours}

    @functools.cached_property
    def _parts(self) -> dict[re.Pattern, str]:
        def pattern(name: str) -> re.Pattern:
            return re.compile(re.escape(name).replace(r"\{i\}", r"\d+"))

        return {pattern(r.theirs): r.ours[0].split("/")[0] for r in self.rows}

    def part(self, name: str) -> str | None:
        """The part of our model ("image", "mlm_head" ...) that a tensor belongs to."""
        found = (p for pattern, p in self._parts.items() if pattern.fullmatch(name))
        first = name.split(".")[0]
        known = self.named_by_part and first in PARTS
        return next(found, first if known else None)

    def row(self, path: str) -> tuple[Row | None, str]:
        """The row for one of our paths, and the number of its block."""
        if path in self.by_ours:
            return self.by_ours[path], ""
        number = re.search(r"block_(\d+)/", path)
        template = re.sub(r"block_\d+/", "block_{i}/", path)
        return self.by_ours.get(template), number[1] if number else ""


def _dense(theirs: str, ours: str, bias: bool = True) -> list[Row]:
    rows = [Row(f"{theirs}.weight", (f"{ours}/kernel",), KERNEL)]
    return rows + [Row(f"{theirs}.bias", (f"{ours}/bias",))] * bias


def _norm(theirs: str, ours: str) -> list[Row]:
    weight = Row(f"{theirs}.weight", (f"{ours}/scale",))
    return [weight, Row(f"{theirs}.bias", (f"{ours}/bias",))]


def _embedding(theirs: str, ours: str) -> list[Row]:
    return [Row(f"{theirs}.weight", (f"{ours}/embedding",))]


def _fused(theirs: tuple[str, str], ours: str) -> list[Row]:
    def paths(leaf: str) -> tuple[str, ...]:
        return tuple(f"{ours}/{name}/{leaf}" for name in ("query", "key", "value"))

    weight = Row(theirs[0], paths("kernel"), FUSED_KERNEL)
    return [weight, Row(theirs[1], paths("bias"), FUSED_BIAS)]


def _tower(
    pairs: Iterable[tuple[str, str]], make: Callable[[str, str], list[Row]], before=""
) -> list[Row]:
    return [row for a, b in pairs for row in make(before + a, b)]


def _patches(name: str) -> list[Row]:
    weight = Row(f"{name}.weight", ("image/patch_embedding/kernel",), CONV)
    return [weight, Row(f"{name}.bias", ("image/patch_embedding/bias",))]


BLOCK = "image/block_{i}"
TEXT = "text/block_{i}"
QKVO = ("query", "key", "value", "out")


def _vit_rows(dense: Sequence[str], block: str, before: str) -> tuple[Row, ...]:
    """transformers' ViT and DeiT. dense: q, k, v, o, fc1, fc2; block: of theirs."""
    ours = [f"{BLOCK}/attention/{name}" for name in QKVO]
    ours += [f"{BLOCK}/mlp/fc1", f"{BLOCK}/mlp/fc2"]
    theirs = [f"{block}.{name}" for name in dense]
    norms = [(f"{block}.layernorm_before", f"{BLOCK}/norm1")]
    norms += [(f"{block}.layernorm_after", f"{BLOCK}/norm2")]
    norms += [("layernorm", "image/norm")]
    tokens = f"{before}embeddings."
    return (
        Row(f"{tokens}cls_token", ("image/class_token",)),
        Row(f"{tokens}distillation_token", ("image/distillation_token",)),
        Row(f"{tokens}position_embeddings", ("image/position_embedding",), BATCHED),
        *_patches(f"{tokens}patch_embeddings.projection"),
        *_tower(zip(theirs, ours, strict=True), _dense, before),
        *_tower(norms, _norm, before),
    )


def _vit(before: str, in_memory: bool) -> Layout:
    dense = ("q_proj", "k_proj", "v_proj", "o_proj")
    dense = tuple(f"attention.{name}" for name in dense) + ("mlp.fc1", "mlp.fc2")
    block = "layers.{i}"
    if not in_memory:
        dense = tuple(f"attention.attention.{name}" for name in QKVO[:3])
        dense += ("attention.output.dense", "intermediate.dense", "output.dense")
        block = "encoder.layer.{i}"
    return Layout(
        "transformers ViT",
        (
            f"{before}embeddings.patch_embeddings.projection.weight",
            f"{before}{block}.{dense[0]}.weight".format(i=0),
        ),
        _vit_rows(dense, block, before),
        distillation=f"{before}embeddings.distillation_token",
    )


def _timm_rows(before: str) -> tuple[Row, ...]:
    block = f"{before}blocks.{{i}}"
    dense = (("attn.proj", "attention/out"), ("mlp.fc1",) * 2, ("mlp.fc2",) * 2)
    dense = [(f"{block}.{a}", f"{BLOCK}/{b.replace('.', '/')}") for a, b in dense]
    norms = [(f"{block}.norm{n}", f"{BLOCK}/norm{n}") for n in (1, 2)]
    norms += [(f"{before}norm", "image/norm"), (f"{before}norm_pre", "image/pre_norm")]
    qkv = (f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias")
    return (
        Row(f"{before}cls_token", ("image/class_token",)),
        Row(f"{before}dist_token", ("image/distillation_token",)),
        Row(f"{before}pos_embed", ("image/position_embedding",), BATCHED),
        *_patches(f"{before}patch_embed.proj"),
        *_fused(qkv, f"{BLOCK}/attention"),
        *_tower(dense, _dense),
        *_tower(norms, _norm),
    )


TIMM = Layout(
    "timm ViT",
    ("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),
    _timm_rows(""),
    distillation="dist_token",
)


def _bert_rows(before: str) -> tuple[Row, ...]:
    layer = f"{before}encoder.layer.{{i}}"
    embeddings = f"{before}embeddings"
    dense = [("attention.self." + name, f"attention/{name}") for name in QKVO[:3]]
    dense += [("attention.output.dense", "attention/out")]
    dense += [("intermediate.dense", "mlp/fc1"), ("output.dense", "mlp/fc2")]
    norms = [("attention.output", "attention_norm"), ("output", "mlp_norm")]
    norms = [(f"{layer}.{a}.LayerNorm", f"{TEXT}/{b}") for a, b in norms]
    norms += [(f"{embeddings}.LayerNorm", "text/embedding_norm")]
    kinds = {"word": "token", "position": "position", "token_type": "type"}
    return (
        *_tower(
            [
                (f"{embeddings}.{a}_embeddings", f"text/{b}_embedding")
                for a, b in kinds.items()
            ],
            _embedding,
        ),
        *_tower([(f"{layer}.{a}", f"{TEXT}/{b}") for a, b in dense], _dense),
        *_tower(norms, _norm),
    )


def _mlm_rows(before: str, bias: str = "bias") -> tuple[Row, ...]:
    return (
        *_dense(f"{before}transform.dense", "mlm_head/dense"),
        *_norm(f"{before}transform.LayerNorm", "mlm_head/norm"),
        Row(before + bias, ("mlm_head/bias",)),
        Row(f"{before}decoder.weight", ("mlm_head/kernel",), KERNEL),
    )


def _bert(before: str, head: str, untied: bool = False) -> Layout:
    words = f"{before}embeddings.word_embeddings.weight"
    signs = (words, f"{before}encoder.layer.0.attention.self.query.weight")
    rows = _bert_rows(before)
    if not head:
        return Layout("transformers BERT", signs, rows)
    biases = f"{head}bias", f"{head}decoder.bias"
    if untied:  # both are there, and transformers adds the decoder's
        signs, biases = (*signs, biases[1]), biases[::-1]
    return Layout(
        "transformers BERT",
        signs,
        rows + _mlm_rows(head, biases[0].removeprefix(head)),
        copies=((f"{head}decoder.weight", words), biases[::-1]),
    )


def _clip_blocks(theirs: str, ours: str) -> list[Row]:
    dense = [
        (f"self_attn.{a}_proj", b)
        for a, b in zip(("q", "k", "v"), QKVO[:3], strict=True)
    ]
    dense = [(a, f"attention/{b}") for a, b in [*dense, ("self_attn.out_proj", "out")]]
    dense += [("mlp.fc1", "mlp/fc1"), ("mlp.fc2", "mlp/fc2")]
    norms = [(f"layer_norm{n}", f"norm{n}") for n in (1, 2)]
    block = f"{theirs}encoder.layers.{{i}}"
    ours = f"{ours}/block_{{i}}"
    return [
        *_tower([(f"{block}.{a}", f"{ours}/{b}") for a, b in dense], _dense),
        *_tower([(f"{block}.{a}", f"{ours}/{b}") for a, b in norms], _norm),
    ]


def _clip_image(before: str) -> tuple[Row, ...]:
    positions = f"{before}embeddings.position_embedding.weight"
    norms = [("pre_layrnorm", "image/pre_norm"), ("post_layernorm", "image/norm")]
    return (
        Row(f"{before}embeddings.class_embedding", ("image/class_token",), VECTOR),
        Row(positions, ("image/position_embedding",)),
        *_patches(f"{before}embeddings.patch_embedding"),
        *_clip_blocks(before, "image"),
        *_tower(norms, _norm, before),
    )


def _clip_text(before: str) -> tuple[Row, ...]:
    names = [
        (f"{before}embeddings.{n}_embedding", f"text/{n}_embedding")
        for n in ("token", "position")
    ]
    return (
        *_tower(names, _embedding),
        *_clip_blocks(before, "text"),
        *_norm(f"{before}final_layer_norm", "text/norm"),
    )


CLIP = Layout(
    "transformers CLIP",
    ("vision_model.embeddings.class_embedding", "text_model.final_layer_norm.weight"),
    (
        *_clip_image("vision_model."),
        *_clip_text("text_model."),
        *_dense("visual_projection", "image_projection", bias=False),
        *_dense("text_projection", "text_projection", bias=False),
        Row("logit_scale", ("log_scale",), SCALAR),
    ),
)


def _clip_half(before: str, image: bool) -> Layout:
    """CLIP's one tower alone, with its projection where it is there."""
    if image:
        projection = _dense("visual_projection", "image_projection", bias=False)
        sign = f"{before}embeddings.class_embedding"
        return Layout("transformers CLIP", (sign,), (*_clip_image(before), *projection))
    projection = _dense("text_projection", "text_projection", bias=False)
    sign = f"{before}final_layer_norm.weight"
    return Layout("transformers CLIP", (sign,), (*_clip_text(before), *projection))


def _openai_blocks(theirs: str, ours: str) -> list[Row]:
    block, ours = f"{theirs}transformer.resblocks.{{i}}", f"{ours}/block_{{i}}"
    dense = (
        ("attn.out_proj", "attention/out"),
        ("mlp.c_fc", "mlp/fc1"),
        ("mlp.c_proj", "mlp/fc2"),
    )
    qkv = (f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias")
    return [
        *_fused(qkv, f"{ours}/attention"),
        *_tower([(f"{block}.{a}", f"{ours}/{b}") for a, b in dense], _dense),
        *_tower([(f"{block}.ln_{n}", f"{ours}/norm{n}") for n in (1, 2)], _norm),
    ]


OPENAI = Layout(
    "OpenAI CLIP",
    ("visual.conv1.weight", "visual.proj"),
    (
        Row("visual.class_embedding", ("image/class_token",), VECTOR),
        Row("visual.positional_embedding", ("image/position_embedding",)),
        *_patches("visual.conv1"),
        *_norm("visual.ln_pre", "image/pre_norm"),
        *_openai_blocks("visual.", "image"),
        *_norm("visual.ln_post", "image/norm"),
        Row("visual.proj", ("image_projection/kernel",)),
        *_embedding("token_embedding", "text/token_embedding"),
        Row("positional_embedding", ("text/position_embedding/embedding",)),
        *_openai_blocks("", "text"),
        *_norm("ln_final", "text/norm"),
        Row("text_projection", ("text_projection/kernel",)),
        Row("logit_scale", ("log_scale",), SCALAR),
    ),
)

# The released UniPT code: ViLT's frame around timm's ViT and transformers' BERT.
RELEASED = Layout(
    "released UniPT",
    ("transformer.patch_embed.proj.weight", "txt_proj.weight"),
    (
        *_timm_rows("transformer."),
        *_bert_rows("text_model."),
        *_dense("img_proj", "image_projection"),
        *_dense("txt_proj", "text_projection"),
        *_mlm_rows("mlm_score."),
    ),
    distillation="transformer.dist_token",
)


def _their_name(path: str) -> str:
    name, _, leaf = path.rpartition("/")
    leaf = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(
        leaf, leaf
    )
    name = re.sub(r"block_(\d+)", r"blocks/\1", name)
    return f"{name}/{leaf}".strip("/").replace("/", ".")


def ours_in_torch(paths: Iterable[str]) -> Layout:
    """Our export's own layout, for these parameters: our paths in PyTorch's words."""

    def convert(path: str) -> Convert:
        if path == "image/patch_embedding/kernel":
            return CONV
        return KERNEL if path.endswith("/kernel") else SAME

    rows = tuple(Row(_their_name(path), (path,), convert(path)) for path in paths)
    signs = ("image.patch_embedding.weight", "text.token_embedding.weight")
    second = _their_name("image/distillation_token")
    more = dict(distillation=second, named_by_part=True)
    return Layout("unipt_jax export", signs, rows, **more)


VIT = _vit("", in_memory=False)
BERT = _bert("", "")
BERT_MLM = _bert("bert.", "cls.predictions.")
BERT_UNTIED = _bert("bert.", "cls.predictions.", untied=True)
LAYOUTS = (
    CLIP,
    OPENAI,
    RELEASED,
    *(_clip_half(p, True) for p in ("vision_model.", "")),
    *(_clip_half(p, False) for p in ("text_model.", "")),
    *(_vit(p, memory) for p in ("", "vit.", "deit.") for memory in (False, True)),
    TIMM,
    BERT_UNTIED,
    BERT_MLM,
    BERT,
)


def detect(names: Iterable[str], paths: Iterable[str]) -> Layout | None:
    """The first layout whose signs are all among the names; None where there is none.

    paths: our parameters, for the layout of our own exports.
    """
    names = set(names)
    candidates = (*LAYOUTS, ours_in_torch(paths))
    return next((c for c in candidates if names.issuperset(c.signs)), None)
