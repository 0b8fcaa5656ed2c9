"""What a caption job wrote, to look at: its rows in, figures and one page out."""

import collections
import contextlib
import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
from matplotlib.figure import Figure

from unipt_jax import page
from unipt_jax.captions import quality
from unipt_jax.captions.conquer import STEPS
from unipt_jax.captions.lexicon import OPTIONAL, Lexicon
from unipt_jax.captions.pictures import Pictures
from unipt_jax.data import images

BINS = 20  # of a histogram of probabilities
SHEET = 1000  # rows kept to choose the contact sheet from
_WORD = re.compile(r"[a-z]+(?:[-'][a-z]+)*")

TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width">
<style>{{ style }}
 figure { width: 11rem } figure img { border: 0; height: 11rem }
 figcaption { text-align: left } td:first-child, th:first-child { text-align: left }
</style></head><body>
<h1>{{ title }}</h1><p class="sub">{{ subtitle }}</p>
<table><tr>{% for name in figures %}<th>{{ name }}</th>{% endfor %}</tr>
<tr>{% for value in figures.values() %}<td>{{ value }}</td>{% endfor %}</tr></table>
<h2>Images and their captions</h2><div class="row">
{% for p in pictures %}<figure><img alt="{{ p.label }}"
src="data:{{ p.mime }};base64,{{ p.base64 }}"><figcaption>{{ p.label }}</figcaption>
</figure>{% endfor %}</div>
<h2>Things found</h2>
<table><tr><th>attribute</th><th>images</th><th>%</th><th>paper %</th><th>above</th></tr>
{% for row in things %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>
{% if accuracy %}<h2>Accuracy, in percent</h2>
<p>Against what is known of each image; "majority" is what saying the commonest value
always would give.</p>
<table><tr><th>fact</th><th>accuracy</th><th>majority</th><th>balanced</th>
<th>majority, balanced</th></tr>
{% for row in accuracy %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}</table>{% endif %}
{% for heading, chart in charts %}<h2>{{ heading }}</h2>
<div class="curves">{{ chart|safe }}</div>{% endfor %}
{% if skipped %}<p>{{ skipped }} images were skipped: see skipped.jsonl.</p>{% endif %}
</body></html>
"""


class Tally:
    """Counts over all captions, row by row; of each it keeps no more than a hash."""

    def __init__(self, words: Lexicon) -> None:
        self.images = 0
        self.values = {name: collections.Counter() for name in words.attributes}
        self.confidence = {name: [0] * BINS for name in words.attributes}
        self.templates: collections.Counter = collections.Counter()
        self.words: collections.Counter = collections.Counter()
        self._pairs: set = set()
        self._seen: set[int] = set()
        self._captions = self._tokens = 0
        self._of = len(words.templates)
        self._random, self._rows = random.Random(0), []

    def add(self, row: Mapping[str, Any]) -> None:
        """One captioned image: a line of captions.jsonl."""
        self.images += 1
        if len(self._rows) < SHEET:
            self._rows.append(row)
        elif (place := self._random.randrange(self.images)) < SHEET:
            self._rows[place] = row
        for name, found in row["evidence"].items():
            self.values[name][found["value"]] += 1
            self.confidence[name][min(int(found["probability"] * BINS), BINS - 1)] += 1
        self.templates.update(row["templates"])
        for caption in row["captions"]:
            tokens = _WORD.findall(caption.lower())
            self.words.update(tokens)
            self._pairs.update(itertools.pairwise(tokens))
            self._seen.add(hash(caption))
            self._tokens += len(tokens)
            self._captions += 1

    def figures(self) -> dict[str, Any]:
        """distinct_n: different n-grams over all n-grams. duplicates: the share, in
        percent, of captions that stand elsewhere already."""
        tokens, captions = max(self._tokens, 1), max(self._captions, 1)
        pairs = max(self._tokens - self._captions, 1)
        return {
            "captions": self._captions,
            "words_a_caption": round(self._tokens / captions, 2),
            "vocabulary": len(self.words),
            "distinct_1": round(len(self.words) / tokens, 6),
            "distinct_2": round(len(self._pairs) / pairs, 6),
            "duplicates": round(100 * (1 - len(self._seen) / captions), 4),
            "templates_used": len(self.templates),
            "templates": self._of,
            "found": {name: self.images - self.values[name][""] for name in OPTIONAL},
        }

    def sample(self, count: int) -> Iterator[Mapping[str, Any]]:
        """So many rows, drawn at random, in the order of the images."""
        rows = self._random.sample(self._rows, min(count, len(self._rows)))
        yield from sorted(rows, key=lambda row: row["index"])


def _bars(panels: Mapping[str, Mapping[str, float]], columns: int = 4) -> str:
    """Small horizontal bar charts, an attribute each."""
    rows = -(-len(panels) // columns)
    most = max(len(values) for values in panels.values())
    figure = Figure(figsize=(3.2 * columns, rows * (0.5 + 0.19 * most)))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, values) in zip(axes, panels.items(), strict=False):
        names = list(values)[::-1]
        axis.barh([n or "(none)" for n in names], [values[n] for n in names])
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return page.svg(figure)


def _histograms(panels: Mapping[str, Sequence[int]], columns: int = 5) -> str:
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(2.5 * columns, 1.7 * rows))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, (name, counts) in zip(axes, panels.items(), strict=False):
        places = [(i + 0.5) / len(counts) for i in range(len(counts))]
        axis.bar(places, counts, width=1 / len(counts))
        axis.set_title(name, fontsize=9)
        axis.tick_params(labelsize=7)
        axis.set_yticks([])
        axis.spines[["top", "right", "left"]].set_visible(False)
    for axis in axes[len(panels) :]:
        axis.set_visible(False)
    figure.tight_layout()
    return page.svg(figure)


def _use(counts: collections.Counter, total: int) -> str:
    """How often each template was drawn, the commonest first."""
    figure = Figure(figsize=(11, 2.2))
    axis = figure.subplots()
    heights = [count for _, count in counts.most_common()]
    axis.bar(range(total), heights + [0] * (total - len(heights)), width=1.0)
    axis.set_xlabel(f"{total} templates, the commonest first")
    axis.set_ylabel("captions")
    axis.spines[["top", "right"]].set_visible(False)
    return page.svg(figure)


def _things(tally: Tally, paper: Mapping[str, float], thresholds) -> list[list[str]]:
    rows = []
    for name in OPTIONAL:
        found = tally.images - tally.values[name][""]
        said = f"{100 * paper[name]:.2f}" if name in paper else "-"
        share = f"{100 * found / max(tally.images, 1):.2f}"
        rows.append([name, str(found), share, said, f"{thresholds[name] / STEPS:g}"])
    return rows


def render(
    *,
    title: str,
    subtitle: str,
    source: Pictures,
    tally: Tally,
    summary: Mapping[str, Any],
    thresholds: Mapping[str, int],
    paper: Mapping[str, float],
    examples: int,
) -> str:
    """The page, with nothing loaded from elsewhere.

    summary: what captions.json holds. thresholds: in steps. paper: the share of images
    with each thing in the paper. examples: images on the contact sheet.
    """
    shown = []
    for row in tally.sample(examples):
        with contextlib.suppress(OSError, ValueError):  # removed since it was captioned
            small = images.thumbnail(source[row["index"]].image)
            shown.append(page.Picture(small, " / ".join(row["captions"]), True))
    values = {
        name: dict(counts.most_common(12)) for name, counts in tally.values.items()
    }
    charts = [
        ("What was said", _bars(values)),
        ("Words, the 40 commonest", _bars({"": dict(tally.words.most_common(40))}, 1)),
        ("Templates", _use(tally.templates, summary["templates"])),
        ("How sure: probability of the best phrase", _histograms(tally.confidence)),
    ]
    names = ("captioned", "skipped", "captions", "words_a_caption", "vocabulary")
    names += ("distinct_1", "distinct_2", "duplicates", "templates_used")
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    return template.render(
        style=page.STYLE,
        title=title,
        subtitle=subtitle,
        figures={name.replace("_", " "): summary[name] for name in names},
        pictures=shown,
        things=_things(tally, paper, thresholds),
        accuracy=quality.rows(summary["accuracy"]) if "accuracy" in summary else [],
        charts=charts,
        skipped=summary["skipped"],
    )
