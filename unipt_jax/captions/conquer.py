"""Images and the phrases' prompts in, the most probable phrases out: CLIP decides.

UniPT's "conquer": cosines of an image with all prompts, and within each attribute a
softmax at CLIP's own scale. Probabilities are rounded to 1 / `STEPS` before anything is
compared; equal ones go to the phrase that the files have first.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from unipt_jax import sharding
from unipt_jax.captions.lexicon import Lexicon, Phrase
from unipt_jax.data import transforms
from unipt_jax.encoder import Encoder

STEPS = 10_000
PROMPTS = 64  # embedded at a time


@functools.partial(jax.jit, static_argnames=("model", "mean", "std", "spans", "out"))
def _decide(params, pixels, prompts, *, model, mean, std, spans, out):
    """pixels (B, H, W, 3) uint8, prompts (K, P) -> two (B, attributes) of whole numbers:
    the phrase within its attribute, and its probability in steps."""
    pixels = transforms.normalise(pixels, mean=mean, std=std)
    variables = {"params": params}
    image = model.apply(variables, pixels, method="encode_image")  # (B, P)
    scale = model.apply(variables, method="scale")
    cosines = jnp.matmul(image, prompts.T, precision="highest")  # (B, K)
    best, probability = [], []
    for begin, end, told in spans:
        odds = jax.nn.softmax(scale * cosines[:, begin:end], axis=-1)
        steps = jnp.round(odds * STEPS).astype(jnp.int32)[:, :told]
        best.append(jnp.argmax(steps, axis=-1))  # the first of equal ones
        probability.append(jnp.max(steps, axis=-1))
    numbers = jnp.stack(best, axis=1).astype(jnp.int32), jnp.stack(probability, axis=1)
    return jax.lax.with_sharding_constraint(numbers, (out, out))


def embed_prompts(encoder: Encoder, phrases: Sequence[Phrase]) -> np.ndarray:
    """(phrases, P) float32: the mean of each phrase's prompts, as unit vectors.

    Every device embeds all of them, in batches of one size, so that the result does not
    depend on how many devices there are.
    """
    texts = [prompt for phrase in phrases for prompt in phrase.prompts]
    ids, _ = encoder.tokenizer.encode(texts, encoder.lengths[-1])
    count = -(-len(ids) // PROMPTS) * PROMPTS
    tokens = encoder.pad([*ids, *ids[-1:] * (count - len(ids))])
    everywhere = sharding.replicated(encoder.mesh)
    parts = [
        encoder.embed_texts(jax.device_put(part, everywhere))
        for part in np.split(tokens, count // PROMPTS)
    ]
    vectors = np.concatenate(parts)[: len(ids)]
    owner = np.repeat(np.arange(len(phrases)), [len(p.prompts) for p in phrases])
    mean = np.zeros((len(phrases), vectors.shape[1]), np.float32)
    np.add.at(mean, owner, vectors)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Findings:
    """What CLIP finds in images. best: (B, attributes) numbers of phrases, of those that
    say that a thing is there; steps: (B, attributes) their probabilities x `STEPS`."""

    best: np.ndarray
    steps: np.ndarray


class Judge:
    """Decides about batches of images. A batch is so many images a device, always.

    prompts: (phrases of all attributes, P) unit vectors. spans: of each attribute where
    its phrases begin and end, and how many of them say that a thing is there.
    """

    def __init__(self, encoder: Encoder, lexicon: Lexicon, per_device: int) -> None:
        self.encoder, self.attributes = encoder, tuple(lexicon.attributes.values())
        self.batch_size = per_device * encoder.mesh.size
        spans, end = [], 0
        for attribute in self.attributes:
            told = sum(bool(phrase) for phrase in attribute.phrases)
            spans.append((end, end + len(attribute.phrases), told))
            end += len(attribute.phrases)
        self.spans = tuple(spans)
        everything = [phrase for a in self.attributes for phrase in a.phrases]
        prompts = embed_prompts(encoder, everything)
        self.prompts = jax.device_put(prompts, sharding.replicated(encoder.mesh))
        self._split = sharding.batch_sharding(encoder.mesh)

    def start(self, pixels: np.ndarray) -> tuple[jax.Array, jax.Array]:
        """(batch_size, H, W, 3) uint8 -> what `finish` takes; does not wait."""
        encoder = self.encoder
        return _decide(
            encoder.params,
            jax.device_put(pixels, self._split),
            self.prompts,
            model=encoder.model,
            mean=encoder.mean,
            std=encoder.std,
            spans=self.spans,
            out=self._split,
        )

    def finish(self, numbers: tuple[jax.Array, jax.Array]) -> Findings:
        """Waits for a batch."""
        return Findings(*(np.asarray(n) for n in numbers))

    def chosen(
        self,
        best: Sequence[int],
        steps: Sequence[int],
        thresholds: Mapping[str, int],
    ) -> dict[str, Phrase]:
        """One image's phrases: all required ones, and the things seen surely enough.

        thresholds: of optional attributes, in steps; a probability must be above.
        """
        return {
            attribute.name: attribute.phrases[number]
            for attribute, number, probability in zip(
                self.attributes, best, steps, strict=True
            )
            if not attribute.optional or probability > thresholds[attribute.name]
        }


def fit_thresholds(
    steps: np.ndarray, names: Sequence[str], targets: Mapping[str, float]
) -> dict[str, int]:
    """Thresholds at which things are found as often as they should be.

    steps: (images, attributes) probabilities in steps, columns as `names`. targets:
    attribute -> the share of the images that has it. Returns, for each target, the
    threshold whose share above it lies nearest; of equal ones the highest.
    """
    out = {}
    for name, share in targets.items():
        column = np.sort(steps[:, list(names).index(name)])
        candidates = np.arange(STEPS, -1, -1)
        above = len(column) - np.searchsorted(column, candidates, side="right")
        distance = np.abs(above / len(column) - share)
        out[name] = int(candidates[np.argmin(distance)])
    return out
