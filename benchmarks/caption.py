"""Images a second of the caption job against the same CLIP in PyTorch.

Ours is the job itself: decode, CLIP, decide, compose, write shards. The reference is what
a good PyTorch program does: transformers' CLIPModel in eager mode, batches of
64, with its eager attention ("torch") or PyTorch's fused one ("torch_sdpa"), the same
decoding threads reading ahead, the same phrases, the same composer and a JSON line each.
Both have one set of random weights, ViT-B/16 unless told otherwise, and take turns.

    python -m benchmarks.caption [--images 192] [--repeats 3] [--save]
"""

import concurrent.futures
import contextlib
import io
import json
import pathlib
import tempfile
import time

import jax
import numpy as np
from etils import epath
from PIL import Image

from benchmarks import report
from unipt_jax import encoder as encoders
from unipt_jax import host, sharding
from unipt_jax.captions import (
    compose,
    conquer,
    lexicon,
    pictures,
    reading,
    work,
)
from unipt_jax.captions.conquer import STEPS
from unipt_jax.captions.lexicon import OPTIONAL
from unipt_jax.captions.loading import Loader
from unipt_jax.captions.outputs import Outputs, Row
from unipt_jax.data import images

BATCH = 64
COMPOSED = 20_000  # captions, to time composing alone


def write_images(folder: pathlib.Path, count: int) -> None:
    """JPEGs of 384x128, smooth as photographs are."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for index in range(count):
        small = Image.fromarray(rng.integers(0, 256, (24, 8, 3), np.uint8))
        picture = small.resize((128, 384), Image.Resampling.BICUBIC)
        picture.save(folder / f"{index:05d}.jpg", quality=92)


def write_clip(folder: pathlib.Path, small: bool):
    """A CLIP with random weights as transformers saves it; the model itself.

    Its vocabulary is the letters alone: what prompts mean is nothing to random weights.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    tower = sizes | dict(num_attention_heads=2) if small else {}
    letters = sorted(byte_letters())
    tokens = [*letters, *(f"{x}</w>" for x in letters), "th"]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    text = dict(vocab_size=len(tokens), eos_token_id=len(tokens) - 1, **tower)
    config = transformers.CLIPConfig(
        text_config=text, vision_config=dict(patch_size=16, **tower)
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(folder)
    numbers = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\nt h\n")
    return model


def plain_attention(model):
    """The same model with attention as matrix products and a softmax."""
    twin = type(model)(model.config).eval()
    twin.load_state_dict(model.state_dict())
    twin.set_attn_implementation("eager")
    return twin


def byte_letters() -> list[str]:
    """The letters that stand for bytes in CLIP's vocabulary."""
    import tokenizers

    return tokenizers.pre_tokenizers.ByteLevel.alphabet()


class Ours:
    """The caption job, its prompts embedded."""

    def __init__(self, source, clip: pathlib.Path, threads: int) -> None:
        self.source, self.words = source, reading.read()
        self.encoder = encoders.load(clip, mesh=sharding.local_mesh(), dtype="float32")
        self.judge = conquer.Judge(self.encoder, self.words, sharding.per_device(0))
        loader = Loader(
            source=source,
            size=self.encoder.size,
            fit=self.encoder.fit,
            batch_size=self.judge.batch_size,
            threads=threads,
            keep=False,
        )
        self.writer = work.Writer(
            loader=loader,
            judge=self.judge,
            words=self.words,
            thresholds={name: round(0.9 * STEPS) for name in OPTIONAL},
            seed=0,
            count=1,
        )

    def run(self) -> None:
        """All images, to written captions."""
        with tempfile.TemporaryDirectory() as folder:
            shards = -(-len(self.source) // BATCH)
            outputs = Outputs(
                epath.Path(folder),
                split="pretrain",
                shards=shards,
                aligned=False,
                keep_records=False,
            )
            with contextlib.redirect_stderr(io.StringIO()):
                work.write_shards(self.writer, outputs, shard_size=BATCH)
                outputs.join()
                outputs.finish({})

    def forward(self) -> None:
        """One batch through CLIP alone."""
        size = self.judge.batch_size
        pixels = np.zeros((size, *self.encoder.size, 3), np.uint8)
        for _ in range(BATCH // size):
            self.judge.finish(self.judge.start(pixels))


class Reference:
    """The same with PyTorch and transformers."""

    def __init__(self, ours: Ours, model, threads: int) -> None:
        import torch

        self.torch, self.model, self.ours, self.threads = torch, model, ours, threads
        self.prompts = torch.from_numpy(np.array(ours.judge.prompts))
        self.mean = torch.tensor(ours.encoder.mean).view(3, 1, 1)
        self.std = torch.tensor(ours.encoder.std).view(3, 1, 1)

    def _load(self, index: int):
        encoder, record = self.ours.encoder, self.ours.source[index]
        pixels = images.decode(record.image, *encoder.size, encoder.fit)
        array = self.torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return record.image_id, (array / 255 - self.mean) / self.std

    def _decide(self, pixels):
        """(B, attributes) best phrases and their probabilities in steps."""
        with self.torch.inference_mode():
            image = self.model.get_image_features(pixel_values=pixels)
            image = getattr(image, "pooler_output", image)  # transformers 5
            image = image / image.norm(dim=-1, keepdim=True)
            logits = self.model.logit_scale.exp() * image @ self.prompts.T
            best, steps = [], []
            for begin, end, told in self.ours.judge.spans:
                odds = logits[:, begin:end].softmax(dim=-1)[:, :told]
                rounded = (odds * STEPS).round().int()
                best.append(rounded.argmax(dim=-1))
                steps.append(rounded.max(dim=-1).values)
            stack = self.torch.stack
            return stack(best, 1).tolist(), stack(steps, 1).tolist()

    def run(self) -> None:
        """All images, to written captions."""
        ours = self.ours
        count = len(ours.source)
        with (
            concurrent.futures.ThreadPoolExecutor(self.threads) as pool,
            tempfile.TemporaryFile("w") as file,
        ):
            ahead = [pool.submit(self._load, i) for i in range(min(count, 3 * BATCH))]
            for begin in range(0, count, BATCH):
                loaded = [f.result() for f in ahead[:BATCH]]
                following = range(begin + 3 * BATCH, min(count, begin + 4 * BATCH))
                ahead = ahead[BATCH:] + [pool.submit(self._load, i) for i in following]
                ids = [image_id for image_id, _ in loaded]
                pixels = self.torch.stack([pixels for _, pixels in loaded])
                for image_id, *found in zip(ids, *self._decide(pixels), strict=True):
                    row = ours.writer.caption(Row(0, image_id), *found)
                    file.write(row.line())

    def forward(self) -> None:
        """One batch through CLIP alone."""
        self._decide(self.torch.zeros(BATCH, 3, *self.ours.encoder.size))


def agreement(ours: Ours, reference: Reference) -> float:
    """The share of the decisions about one batch in which the two are the same."""
    records = [ours.source[i] for i in range(ours.judge.batch_size)]
    size, fit = ours.encoder.size, ours.encoder.fit
    pixels = [images.decode(record.image, *size, fit) for record in records]
    loaded = [reference._load(i)[1] for i in range(len(records))]
    best, _ = reference._decide(reference.torch.stack(loaded))
    mine = ours.judge.finish(ours.judge.start(np.stack(pixels)))
    return float((mine.best == np.array(best)).mean())


def compose_rate(words: lexicon.Lexicon) -> float:
    """Captions a second on one core, of persons with things as the paper has them."""
    rng = np.random.default_rng(0)
    people = []
    for _ in range(2000):
        chosen = {}
        for name, attribute in words.attributes.items():
            told = [phrase for phrase in attribute.phrases if phrase]
            if name not in OPTIONAL or rng.random() < lexicon.PAPER[name]:
                chosen[name] = told[int(rng.integers(len(told)))]
        people.append(chosen)
    begin = time.perf_counter()
    for index in range(COMPOSED):
        compose.captions(words, people[index % 2000], seed=0, image_id=f"{index}.jpg")
    return COMPOSED / (time.perf_counter() - begin)


def main() -> None:
    """Prints the rates and their ratio."""
    parser = report.arguments(__doc__, repeats=3)
    parser.add_argument("--images", type=int, default=3 * BATCH)
    parser.add_argument("--threads", type=int, default=2, help="that decode")
    parser.add_argument("--small", action="store_true", help="towers of 2 layers")
    args = parser.parse_args()
    host.keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        report.progress("making images and weights ...")
        write_images(place / "images", args.images)
        model = write_clip(place / "clip", args.small)
        source = pictures.open_pictures(str(place / "images"), "", "pretrain")
        report.progress("embedding the prompts ...")
        ours = Ours(source, place / "clip", args.threads)
        reference = Reference(ours, model, args.threads)
        eager = Reference(ours, plain_attention(model), args.threads)
        rate = compose_rate(ours.words)
        agree = agreement(ours, reference)
        runs = report.alternate(
            {
                "ours": ours.run,
                "torch": eager.run,
                "torch_sdpa": reference.run,
                "ours_forward": ours.forward,
                "torch_forward": eager.forward,
            },
            args.repeats,
        )
    seconds = {name: float(np.median(times)) for name, times in runs.items()}
    batches = -(-args.images // BATCH)
    forward = batches * seconds["ours_forward"]
    figures = {
        "benchmark": "caption",
        "images": args.images,
        "ours_images_per_second": round(args.images / seconds["ours"], 3),
        "torch_sdpa_images_per_second": round(args.images / seconds["torch_sdpa"], 3),
        "torch_images_per_second": round(args.images / seconds["torch"], 3),
        "ratio": round(seconds["torch"] / seconds["ours"], 3),
        "ratio_sdpa": round(seconds["torch_sdpa"] / seconds["ours"], 3),
        "ratio_forward": round(seconds["torch_forward"] / seconds["ours_forward"], 3),
        "forward_share": round(forward / seconds["ours"], 3),
        "agreement": round(agree, 4),
        "composed_per_second": round(rate),
        "platform": jax.default_backend(),
    }
    report.finish(figures, save=args.save)


if __name__ == "__main__":
    main()
