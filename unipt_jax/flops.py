"""How well a run uses its devices: the model's operations a step, a device's peak.

Model FLOPs (Chowdhery et al., "PaLM", 2022, appendix B) are those of the products of
matrices that the model and its losses are made of; a multiply and an add are 2.
- Each product counts once: recomputation (remat, losses in chunks, two passes of cached
  accumulation) makes a step slower and counts nothing.
- Padding does not count: a text of n tokens has n rows in dense layers, n^2 in attention
  (a causal one too), and MLM's head as many rows as words are hidden.
- The backward pass is twice the forward one: a product for each of its two factors. The
  patch embedding's is once the forward one, since pixels have no gradient.
- Looked-up embeddings, norms, softmaxes and the optimiser are no products of matrices.

So, at one batch size, a step's FLOPs are linear in three sums over its texts, of n, of
n^2 and of hidden words: those of several steps may be added up.
"""

import itertools
import re
from collections.abc import Collection

import jax
import numpy as np
from jax.sharding import Mesh

from unipt_jax import masking
from unipt_jax.errors import UserError
from unipt_jax.models import bert, clip, vit
from unipt_jax.models.interaction import Interaction
from unipt_jax.models.pgu import Pgu
from unipt_jax.models.unipt import DualEncoder

# Losses that need the cosine of every image with every text: one product for all.
SIMILARITY = {"contrastive", "sigmoid", "sdm", "ranking"}
LOSSES = SIMILARITY | {"mlm", "identity", "pgu"}


def _dense(rows: float, *widths: int) -> float:
    """`rows` vectors through Dense layers, from each width to the next."""
    return 2 * rows * sum(a * b for a, b in itertools.pairwise(widths))


def _blocks(
    layers: int, width: int, hidden: int, tokens: float, squares: float
) -> float:
    """Self-attention and MLP; squares: over all sequences, the sum of tokens squared."""
    products = _dense(tokens, width, width) * 4  # query, key, value, out
    attention = 2 * (2 * squares * width)  # logits, and sums weighted by them
    return layers * (products + attention + _dense(tokens, width, hidden, width))


def _cross_attention(
    queries: float, tokens: float, pairs: float, width: int, inner: int
) -> float:
    """pairs: over all samples, the sum of queries times tokens."""
    own = _dense(queries, width, inner, width)  # query, out
    return own + 2 * _dense(tokens, width, inner) + 2 * (2 * pairs * inner)


def patches(tower: vit.ViT) -> int:
    """Patches of an image."""
    return (tower.height // tower.patch[0]) * (tower.width // tower.patch[1])


def patch_embedding(tower: vit.ViT) -> float:
    """FLOPs of one image's patch embedding, forward."""
    return _dense(patches(tower), 3 * tower.patch[0] * tower.patch[1], tower.features)


def image_tower(tower: vit.ViT) -> float:
    """FLOPs of one image through the image tower, forward."""
    n = tower.prefix + patches(tower)
    blocks = _blocks(tower.layers, tower.features, tower.hidden, n, n * n)
    return patch_embedding(tower) + blocks


def text_tower(tower: bert.Bert | clip.ClipText, lengths: np.ndarray) -> float:
    """FLOPs of texts through the text tower, forward. lengths: (B,) tokens of each."""
    n = np.asarray(lengths, float)
    sums = n.sum(), (n * n).sum()
    return _blocks(tower.layers, tower.features, tower.hidden, *sums)


def mlm_head(places: float, width: int, vocabulary: int) -> float:
    """FLOPs of guessing so many words, forward, with a tied kernel or its own."""
    return _dense(places, width, width, vocabulary)


def hidden_words(lengths: np.ndarray, rate: float) -> int:
    """How many words `masking.mask_tokens` hides in texts of (B,) tokens, all together.

    Tokens with [CLS] and [SEP]. With whole words it is the most that may be hidden.
    """
    found, times = np.unique(lengths, return_counts=True)
    shares = [min(max(n - 2, 0), masking.slots(n, rate)) for n in found.tolist()]
    return int(times @ np.array(shares))


def pgu(module: Pgu, width: int, tokens: float, samples: int) -> float:
    """FLOPs of reading so many samples, of so many tokens in all, forward.

    width: of the tokens.
    """
    queries = samples * module.parts
    inner, pairs = module.heads * module.head_width, module.parts * tokens
    block = _cross_attention(queries, tokens, pairs, width, inner)
    block += _dense(queries, width, module.hidden, width)
    return module.layers * block + _dense(queries, width, module.features)


def interaction(
    module: Interaction, width: int, lengths: np.ndarray, image_tokens: int
) -> float:
    """FLOPs of texts of (B,) tokens that read their images, forward."""
    n = np.asarray(lengths, float)
    seen = len(n) * image_tokens
    cross = _cross_attention(n.sum(), seen, image_tokens * n.sum(), width, width)
    return cross + _blocks(module.layers, width, 4 * width, n.sum(), (n * n).sum())


def forward(
    model: DualEncoder,
    lengths: np.ndarray,
    *,
    losses: Collection[str],
    mlm_rate: float = 0.0,
) -> dict[str, float]:
    """FLOPs of the forward pass of one training step, by part; see `step`."""
    unknown = set(losses) - LOSSES
    if unknown:
        raise ValueError(f"{sorted(unknown)} are not among {sorted(LOSSES)}")
    lengths, b = np.asarray(lengths), len(lengths)
    with_mlm = "mlm" in losses and mlm_rate > 0
    crossed = with_mlm and model.interaction is not None
    compared = bool((SIMILARITY | {"identity", "pgu"}) & set(losses))
    parts = {
        "image": b * image_tower(model.image) * (compared or crossed),
        "text": text_tower(model.text, lengths) * (2 if with_mlm else 1),
        "projection": _projections(model, lengths, losses, crossed),
    }
    if with_mlm:
        places = hidden_words(lengths, mlm_rate)
        width = model.embedding if crossed else model.text.features
        parts["mlm"] = mlm_head(places, width, model.text.vocabulary)
    if crossed:
        seen = model.image.prefix + patches(model.image)
        parts["interaction"] = interaction(
            model.interaction, model.embedding, lengths, seen
        )
    if SIMILARITY & set(losses):
        parts["similarity"] = _dense(b, model.embedding, b)
    if "identity" in losses:
        parts["identity"] = 2 * _dense(b, model.embedding, model.identities)
    if "pgu" in losses:
        parts["pgu"] = _granularity(model, lengths)
    return {name: float(value) for name, value in parts.items()}


def _projections(
    model: DualEncoder, lengths: np.ndarray, losses: Collection[str], crossed: bool
) -> float:
    """Both towers' tokens to the shared width: those that anything in use reads."""
    b, n = len(lengths), int(np.sum(lengths))
    grid, prefix = patches(model.image), model.image.prefix
    pooled = bool((SIMILARITY | {"identity"}) & set(losses))
    by_parts = "pgu" in losses and model.pgu.tokens == "projected"
    whole = pooled and model.pool == "max"
    single = pooled and model.pool == "token"
    image = grid if whole or by_parts else 0
    if crossed or (whole and model.pool_special):
        image = grid + prefix
    elif single:
        image += 1
    text = n if whole or by_parts else b * single
    text += n * crossed  # the masked texts
    return _dense(b * image, model.image.features, model.embedding) + _dense(
        text, model.text.features, model.embedding
    )


def _granularity(model: DualEncoder, lengths: np.ndarray) -> float:
    """PGU on both towers, its classifiers, and the cosines of the parts joined."""
    b, module = len(lengths), model.pgu
    projected = module.tokens == "projected"
    width = model.embedding if projected else model.image.features
    read = [b * patches(model.image), int(np.sum(lengths))]
    total = sum(pgu(module, width, tokens, b) for tokens in read)
    total += 2 * _dense(b * module.parts, module.features, model.identities)
    return total + _dense(b, module.parts * module.features, b)


def step(
    model: DualEncoder,
    lengths: np.ndarray,
    *,
    losses: Collection[str],
    mlm_rate: float = 0.0,
) -> float:
    """Model FLOPs of one training step of the global batch, forward and backward.

    lengths: (B,) tokens of each text as it is, without padding, with [CLS] and [SEP].
    losses: the names of those in force. mlm_rate: as of `masking.mask_tokens`; with it,
    and "mlm" among the losses, the text tower reads every text twice, clean and masked.
    Raises ValueError for the name of a loss that is not in `LOSSES`.
    """
    parts = forward(model, lengths, losses=losses, mlm_rate=mlm_rate)
    pixels = patch_embedding(model.image) if parts["image"] else 0.0
    return 3 * sum(parts.values()) - len(lengths) * pixels


# Peaks of one device as JAX counts devices, in TFLOP/s, dense: datasheets that give
# figures "with sparsity" are halved. A pattern is of the name that the driver gives;
# the figures are of bfloat16 (adding in float32), of TF32, and of float32 itself.
PEAKS = (
    # NVIDIA Blackwell architecture, datasheets of GB200 NVL72 and HGX B200.
    (r"^NVIDIA GB200", 2500, 1250, 80),
    (r"^NVIDIA B200", 2250, 1100, 75),
    # Datasheets of H200, H100 (SXM, NVL; the earlier one for PCIe), GH200, H20.
    (r"^NVIDIA H200 NVL", 835.5, 417.5, 60),
    (r"^NVIDIA H200", 989.5, 494.5, 67),
    (r"^NVIDIA GH200", 989.5, 494.5, 67),
    (r"^NVIDIA H100 NVL", 835.5, 417.5, 60),
    (r"^NVIDIA H100 PCIe", 756.5, 378, 51),
    (r"^NVIDIA H100 \S+ HBM3", 989.5, 494.5, 67),
    (r"^NVIDIA H20$", 148, 74, 44),
    # Datasheets of A100, A10, A10G, L40S, L4.
    (r"^(NVIDIA )?A100\b", 312, 156, 19.5),
    (r"^(NVIDIA )?A10G\b", 70, 35, 31.5),
    (r"^(NVIDIA )?A10\b", 125, 62.5, 31.2),
    (r"^NVIDIA L40S", 362, 183, 91.6),
    (r"^NVIDIA L4$", 121, 60, 30.3),
    # White papers of the GA102 and Ada architectures.
    (r"GeForce RTX 3090$", 71, 35.6, 35.6),
    (r"GeForce RTX 4090$", 165.2, 82.6, 82.6),
    # Datasheet of V100: neither bfloat16 nor TF32, XLA computes both in float32.
    (r"V100-SXM2", 15.7, 15.7, 15.7),
    (r"V100-PCIE", 14, 14, 14),
    # Cloud TPU documentation, system architecture: bf16 a chip. A chip of v2, v3 and 7x
    # is two devices. TF32's place: what JAX makes of float32 unless told otherwise, one
    # pass in bfloat16. There is no float32 unit for matrices.
    (r"^TPU v2$", 22.5, 22.5, None),
    (r"^TPU v3$", 61.5, 61.5, None),
    (r"^TPU v4$", 275, 275, None),
    (r"^TPU v5( lite|e)$", 197, 197, None),
    (r"^TPU v5p?$", 459, 459, None),
    (r"^TPU v6( lite|e)$", 918, 918, None),
    (r"^TPU7x$", 1153.5, 1153.5, None),
)
FULL = ("highest", "float32")  # names of JAX's precision that keep float32 whole


def device_peak(kind: str, dtype: str, precision: str | None = None) -> float | None:
    """FLOP/s that a device can reach, or None where no figure is known.

    kind: `device_kind` as JAX gives it; a part of a GPU (MIG) is unknown. dtype: of the
    factors, "bfloat16" or "float32". precision: JAX's default precision of products,
    which on GPUs computes float32 in TF32 unless it is "highest".
    """
    if " MIG " in kind:
        return None
    for pattern, bfloat16, tf32, full in PEAKS:
        if re.search(pattern, kind):
            if dtype == "bfloat16":
                found = bfloat16
            else:
                found = full if precision in FULL else tf32
            return found * 1e12 if found else None
    return None


def mesh_peak(mesh: Mesh, dtype: str, tflops: float = 0.0) -> float | None:
    """FLOP/s that all devices of a mesh can reach together, or None if unknown.

    dtype: as of `device_peak`. tflops: TFLOP/s of one device, 0 for what the table says.
    Raises UserError for a number below 0.
    """
    if not tflops >= 0:
        raise UserError(
            f"peak_tflops={tflops} must be the TFLOP/s of one device, or 0 for those of "
            "the table of known devices"
        )
    if tflops:
        return tflops * 1e12 * mesh.size
    precision = jax.config.jax_default_matmul_precision
    one = device_peak(mesh.devices.flat[0].device_kind, dtype, precision)
    return one * mesh.size if one else None
