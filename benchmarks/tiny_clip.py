r"""Trains the small CLIP that captions the embedded synthetic persons.

In: the phrases of `unipt_jax.captions`, and persons drawn as fast as they are learnt
from, none of them twice. Out: a folder that `unipt_jax.load` opens.

Four goes of about 15 to 40 minutes on two cores made the weights in
`data_prep/synthetic/clip`, each from the one before, with more weight on what was still
hard:

    python -m benchmarks.tiny_clip --out a --steps 11000 --until 4000
    python -m benchmarks.tiny_clip --init a --out b --steps 12500 --until 3000 --lr 1.5e-3 \
        --seed 1000 --emphasise age,bag,glasses,smoke,hat,cellphone,gloves
    python -m benchmarks.tiny_clip --init b --out c --steps 8500 --until 3500 --lr 1.5e-3 \
        --seed 2000 --emphasise age,action,hair,bag,glasses,smoke,hat,cellphone,gloves
    python -m benchmarks.tiny_clip --init c --out data_prep/synthetic/clip --steps 6500 \
        --lr 1.3e-3 --seed 3000 --emphasise glasses,age,hair,hat --emphasis 6

Each attribute is a softmax over the prompts of its phrases, as in captioning, so what is
minimised is what the captioner decides by; of the many phrases for clothes a step sees
those of its batch and some others, and learns colour, pattern and garment one by one too.
"""

import argparse
import functools
import json
import multiprocessing
import pathlib
import time
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from data_prep.synthetic import draw, people
from unipt_jax import encoder as encoders
from unipt_jax import host, optim, sharding, transfer, tree, weights
from unipt_jax.captions import lexicon, reading
from unipt_jax.data import images, tokenizers, transforms
from unipt_jax.models import unipt

HEIGHT, WIDTH = 192, 64
# The optional attributes, made frequent enough to be learnt.
FREQUENCIES = {
    "bag": 0.55,
    "glasses": 0.4,
    "smoke": 0.3,
    "hat": 0.4,
    "cellphone": 0.3,
    "umbrella": 0.15,
    "gloves": 0.35,
    "vehicle": 0.2,
}
CANDIDATES = {"upper": 112, "lower": 72}  # phrases for clothes that one step sees
STATS = dict(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
MODEL = dict(
    image=dict(
        height=HEIGHT,
        width=WIDTH,
        patch=(16, 8),
        features=128,
        layers=4,
        heads=4,
        hidden=512,
        dropout=0.0,
        norm_eps=1e-5,
        activation="quick_gelu",
        pre_norm=True,
        patch_bias=False,
    ),
    text=dict(
        kind="clip",
        positions=32,
        features=96,
        layers=2,
        heads=4,
        hidden=384,
        dropout=0.0,
        attention_dropout=0.0,
        norm_eps=1e-5,
        activation="quick_gelu",
    ),
    embedding=128,
    pool="token",
    projection_bias=False,
    temperature="learned",
    temperature_init=0.07,
    mlm_output="none",
    dtype="float32",
)


def drawn(job: tuple[int, int, int]) -> tuple[np.ndarray, list[dict[str, str]]]:
    """(seed, number of the batch, its size) -> (B, H, W, 3) pixels and what is true.

    Each person is drawn once, stored as a JPEG and read again, as a set's are.
    """
    seed, number, size = job
    rng = np.random.default_rng((seed, number))
    pixels, truths = [], []
    for index in range(size):
        person = people.draw_person(rng, FREQUENCIES)
        view = people.draw_view(rng, person, int(rng.integers(people.CAMERAS)))
        jpeg = draw.jpeg((person, view, (seed, number, index), HEIGHT, WIDTH))
        pixels.append(images.decode(jpeg, HEIGHT, WIDTH))
        truths.append(people.attributes(person, view))
    return np.stack(pixels), truths


def stream(seed: int, count: int, size: int, workers: int) -> Iterator:
    """The first batches, drawn by other processes."""
    jobs = ((seed, number, size) for number in range(count))
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        pending: list = []
        for job in jobs:
            pending.append(pool.apply_async(drawn, (job,)))
            if len(pending) >= 8 * workers:
                yield pending.pop(0).get()
        for result in pending:
            yield result.get()


class Targets:
    """Which phrases are true of a person, as numbers that a loss can use."""

    def __init__(self, words: lexicon.Lexicon, tokens: np.ndarray) -> None:
        """tokens: (prompts a phrase, phrases of all attributes, L)."""
        self.attributes, self.tokens = words.attributes, tokens
        first = np.cumsum([0, *(len(a.phrases) for a in self.attributes.values())])
        self.first = dict(zip(self.attributes, first[:-1].tolist(), strict=True))
        self.index = {
            name: {tuple(sorted(p.facts.items())): i for i, p in enumerate(a.phrases)}
            for name, a in self.attributes.items()
        }
        self.parts = {name: self._parts(name) for name in CANDIDATES}

    def _parts(self, name: str) -> dict[str, np.ndarray]:
        """Fact -> (phrases,) its value's number, for the phrases of a garment."""
        phrases = self.attributes[name].phrases
        out = {}
        for fact in phrases[0].facts:
            values = sorted({p.facts[fact] for p in phrases})
            out[fact] = np.array([values.index(p.facts[fact]) for p in phrases])
        return out

    def numbers(self, truths: list[dict[str, str]], name: str) -> np.ndarray:
        """(B,) the number of the (first) true phrase within the attribute."""
        facts = list(self.attributes[name].phrases[0].facts)
        rows = []
        for truth in truths:
            rows.append(self.index[name][tuple(sorted((f, truth[f]) for f in facts))])
        return np.array(rows, np.int32)

    def batch(self, truths: list[dict[str, str]], rng: np.random.Generator) -> dict:
        """The prompts that a step sees, and for each attribute which of them are true.

        {"tokens": (K, L), "true": name -> (B, K_a) bool, "labels": fact -> (K_a,)}.
        """
        chosen, true, labels = [], {}, {}
        for name, attribute in self.attributes.items():
            number = self.numbers(truths, name)
            count = len(attribute.phrases)
            if name in CANDIDATES:
                some = np.unique(number)
                others = np.setdiff1d(np.arange(count), some)
                more = CANDIDATES[name] - len(some)
                some = np.concatenate([some, rng.choice(others, more, replace=False)])
                for fact, values in self.parts[name].items():
                    labels[fact] = values[some]
                    true[fact] = values[number][:, None] == values[some][None]
                true[name] = number[:, None] == some[None]
            else:
                some = np.arange(count)
                value = np.array([p.value for p in attribute.phrases])
                true[name] = value[number][:, None] == value[None]
            chosen.append(self.first[name] + some)
        prompt = rng.integers(len(self.tokens), size=sum(map(len, chosen)))
        return {"tokens": self.tokens[prompt, np.concatenate(chosen)], "true": true}


def make_loss(
    model: unipt.DualEncoder,
    names: list[str],
    parts: dict[str, list[str]],
    heavy: Mapping[str, float],
):
    """The mean cross-entropy of the attributes, and of the parts of clothes.

    heavy: the weight of those that weigh more than 1.
    """

    def loss(params, batch: dict) -> tuple[jax.Array, dict]:
        pixels = transforms.normalise(batch["image"], **STATS)
        variables = {"params": params}
        image = model.apply(variables, pixels, method="encode_image")
        text = model.apply(variables, batch["tokens"], method="encode_text")
        scale = model.apply(variables, method="scale")
        logits = scale * jnp.matmul(image, text.T)  # (B, K)
        terms, end = {}, 0
        for name in names:
            count = batch["true"][name].shape[1]
            own = jax.nn.log_softmax(logits[:, end : end + count])
            end += count
            for fact in (name, *parts.get(name, ())):
                hit = jnp.where(batch["true"][fact], own, -1e9)
                terms[fact] = -jax.nn.logsumexp(hit, axis=1).mean()
        weight = {fact: heavy.get(fact, 1.0) for fact in terms}
        total = sum(weight[fact] * term for fact, term in terms.items())
        return total / sum(weight.values()), terms | {"scale": scale}

    return loss


def tokenise(words: lexicon.Lexicon) -> tuple[tokenizers.Tokenizer, np.ndarray]:
    """A vocabulary of the prompts' words, and (prompts a phrase, phrases, L) ids."""
    phrases = [p for a in words.attributes.values() for p in a.phrases]
    every = [prompt for phrase in phrases for prompt in phrase.prompts]
    tokenizer = tokenizers.train(every, size=600)
    most = max(len(p.prompts) for p in phrases)
    rows = [p.prompts[i % len(p.prompts)] for i in range(most) for p in phrases]
    ids, cut = tokenizer.encode(rows, MODEL["text"]["positions"])
    assert not cut
    length = max(map(len, ids))
    table = np.full((len(ids), length), tokenizer.pad, np.int32)
    for row, values in zip(table, ids, strict=True):
        row[: len(values)] = values
    return tokenizer, table.reshape(most, len(phrases), length)


def evaluate(model, params, targets: Targets, seed: int, batches: int) -> dict:
    """Accuracy of the most probable phrase, by attribute, on persons never seen."""
    text = jax.jit(functools.partial(model.apply, method="encode_text"))
    text = np.asarray(text({"params": params}, targets.tokens[0]))

    @jax.jit
    def embed(pixels):
        pixels = transforms.normalise(pixels, **STATS)
        return model.apply({"params": params}, pixels, method="encode_image")

    right: dict[str, list[float]] = {}
    for number in range(batches):
        pixels, truths = drawn((seed, number, 128))
        scores = np.asarray(embed(pixels)) @ text.T
        for name, attribute in targets.attributes.items():
            begin = targets.first[name]
            best = scores[:, begin : begin + len(attribute.phrases)].argmax(1)
            true = targets.numbers(truths, name)
            value = np.array([p.value for p in attribute.phrases])
            hits = value[best] == value[true]
            right.setdefault(name, []).append(hits.mean())
            for fact, values in targets.parts.get(name, {}).items():
                right.setdefault(fact, []).append((values[best] == values[true]).mean())
    return {name: round(float(np.mean(rows)), 3) for name, rows in right.items()}


def write(folder: pathlib.Path, model, params, tokenizer) -> None:
    """Writes the folder that `unipt_jax.load` opens, weights in half precision."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {path: np.asarray(x) for path, x in tree.flatten(params).items()}
    layout = weights.ours_in_torch(arrays)
    tensors, _ = transfer.to_theirs(arrays, layout, model.image.patch)
    small = {k: np.array(v, np.float16, order="C") for k, v in tensors.items()}
    save_file(small, folder / "model.safetensors")
    ids = {name: getattr(tokenizer, name) for name in ("pad", "cls", "sep")}
    config = {
        "format": encoders.EXPORT,
        "source": "python -m benchmarks.tiny_clip, whose head has the commands",
        "model": unipt.section(model),
        "vocabulary": len(tokenizer),
        **ids,
        "pixels": {**STATS, "fit": "squeeze"},
        "lengths": [MODEL["text"]["positions"]],
        "heads": False,
        "left_out": [],
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer.save(folder)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--steps", type=int, default=12000, help="of the schedule")
    parser.add_argument("--until", type=int, default=0, help="end after so many")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init", help="a folder of this program's, to go on from")
    parser.add_argument("--emphasise", default="", help="attributes, with commas")
    parser.add_argument("--emphasis", type=float, default=3.0, help="their weight")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--every", type=int, default=500, help="steps between files")
    return parser.parse_args()


def make_step(loss, optimiser: optim.Optimiser):
    """The compiled update: (state, batch) -> (state, metrics)."""

    def step(state, batch):
        grad = jax.value_and_grad(loss, has_aux=True)
        (value, terms), grads = grad(state.params, batch)
        state, numbers = optimiser.update(state, value, grads)
        return state, {"loss": value} | terms | numbers

    return jax.jit(step, donate_argnums=0)


def main() -> None:
    """Trains, evaluates, writes."""
    args = arguments()
    words = reading.read(prompts="all")
    tokenizer, tokens = tokenise(words)
    targets = Targets(words, tokens)
    model = encoders.build_model({"model": MODEL}, tokenizer)
    schedule = optim.make_schedule(
        peak=args.lr, warmup=args.steps // 20, total=args.steps, decay="cosine"
    )
    optimiser = optim.Optimiser(schedule, eps=1e-6, weight_decay=0.02, clip=1.0)
    if args.init:
        params = encoders.load(args.init, mesh=sharding.local_mesh()).params
    else:
        params = unipt.initialise(model, jax.random.key(args.seed))
    state = optimiser.init(params)
    heavy = dict.fromkeys(args.emphasise.split(","), args.emphasis)
    parts = {name: list(facts) for name, facts in targets.parts.items()}
    step = make_step(make_loss(model, list(words.attributes), parts, heavy), optimiser)
    begin, end = time.monotonic(), args.until or args.steps
    batches = stream(args.seed, end, args.batch, args.workers)
    for done, (pixels, truths) in enumerate(batches, start=1):
        batch = targets.batch(truths, np.random.default_rng((args.seed, 1, done)))
        state, metrics = step(state, batch | {"image": pixels})
        if done % 100 == 0 or done == 1:
            row = {k: round(float(v), 3) for k, v in jax.device_get(metrics).items()}
            seconds = f"{time.monotonic() - begin:.0f} s"
            print(done, seconds, json.dumps(row), flush=True)
        if done % args.every == 0 or done == end:
            found = evaluate(model, state.params, targets, args.seed + 1, 8)
            print(done, json.dumps(found), flush=True)
            write(args.out, model, state.params, tokenizer)


if __name__ == "__main__":
    host.keep_memory()
    main()
