"""A record set to look at: its folder in, one self-contained page out."""

import collections
import dataclasses
import os
import pathlib
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from etils import epath
from matplotlib.figure import Figure
from tqdm import tqdm

from unipt_jax import page
from unipt_jax.data import images, records, shards
from unipt_jax.data.records import UNKNOWN, CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError

SAMPLES, READ = 24, 5000  # pictures shown, and records counted, of a split
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width">
<style>{{ style }}
 figure { width: 11rem } figure img { border: 0; height: 11rem; max-width: 11rem }
 figcaption { text-align: left; overflow-wrap: anywhere } small { color: #888 }
 td:first-child, th:first-child { text-align: left } td.left { text-align: left }
</style></head><body>
<h1>{{ title }}</h1><p class="sub">{{ subtitle }}</p>
<table><tr><th>split</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for split, values in splits.items() %}<tr><td>{{ split }}</td>
{% for name in names %}<td>{{ values[name] }}</td>{% endfor %}</tr>{% endfor %}</table>
{% for split, pictures in samples.items() %}<h2>{{ split }}</h2><div class="row">
{% for p in pictures %}<figure><img alt="{{ p.label }}"
src="data:{{ p.mime }};base64,{{ p.base64 }}"><figcaption>{{ p.label }}
{% for caption in p.captions %}<br>{{ caption }}{% endfor %}</figcaption></figure>
{% endfor %}</div>{% endfor %}
<h2>Statistics</h2><div class="curves">{{ charts|safe }}</div>
<h2>How it was made</h2><table>{% for name, value in made.items() %}
<tr><td>{{ name }}</td><td class="left">{{ value }}</td></tr>{% endfor %}</table>
</body></html>
"""


@dataclasses.dataclass(frozen=True)
class _Shown(page.Picture):
    captions: Sequence[str] = ()


@dataclasses.dataclass
class _Tally:
    """What the records of a split hold; `read` of them were looked at."""

    records: int
    read: int = 0
    persons: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    captions: list[int] = dataclasses.field(default_factory=list)
    words: list[int] = dataclasses.field(default_factory=list)
    heights: list[int] = dataclasses.field(default_factory=list)
    vocabulary: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )

    def add(self, record: PersonRecord | CaptionRecord) -> None:
        """One record."""
        self.read += 1
        self.captions.append(len(record.captions))
        for caption in record.captions:
            words = _WORD.findall(caption.lower())
            self.words.append(len(words))
            self.vocabulary.update(words)
        if isinstance(record, PersonRecord):
            if record.person_id != UNKNOWN:
                self.persons[record.person_id] += 1
            self.heights.append(images.size(record.image)[0])

    def row(self) -> dict[str, Any]:
        """As the table has it."""
        all_read = self.read == self.records
        mean = sum(self.words) / max(len(self.words), 1)
        sizes = f"{min(self.heights)} to {max(self.heights)}" if self.heights else "-"
        return {
            "records": f"{self.records:,}",
            "persons": f"{len(self.persons):,}" if self.persons else "-",
            "captions": f"{sum(self.captions):,}",
            "words a caption": f"{mean:.1f}" if self.words else "-",
            "different words": f"{len(self.vocabulary):,}",
            "pixels high": sizes,
            "counted": "all" if all_read else f"{self.read:,} drawn at random",
        }


def _chart(tallies: Mapping[str, _Tally]) -> str:
    """Histograms over all splits, and the commonest words."""
    panels = {
        "words in a caption": [n for t in tallies.values() for n in t.words],
        "captions of an image": [n for t in tallies.values() for n in t.captions],
        "images of a person": [n for t in tallies.values() for n in t.persons.values()],
        "pixels high": [n for t in tallies.values() for n in t.heights],
    }
    panels = {name: values for name, values in panels.items() if values}
    words = sum((t.vocabulary for t in tallies.values()), collections.Counter())
    figure = Figure(figsize=(3.4 * (len(panels) + bool(words)), 3.4))
    axes = figure.subplots(1, len(panels) + bool(words), squeeze=False)[0]
    for axis, (name, values) in zip(axes, panels.items(), strict=False):
        axis.hist(values, bins=min(30, max(values) - min(values) + 1))
        axis.set_xlabel(name)
    if words:
        names, counts = zip(*reversed(words.most_common(20)), strict=True)
        axes[-1].barh(names, counts)
        axes[-1].set_xlabel("commonest words")
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return page.svg(figure)


def write(folder: str | os.PathLike, file: str | os.PathLike) -> None:
    """Writes the page of the record set in `folder`.

    Raises UserError where there is no set.
    """
    file = pathlib.Path(file)
    if file.is_dir():
        raise UserError(f"--peek {file} is a folder; give a file, such as page.html")
    made = records.metadata(folder)
    fields, draw = records.fields(folder), random.Random(0)
    kind = PersonRecord if "image" in fields else CaptionRecord
    tallies, samples = {}, {}
    for split in records.splits(folder):
        source = Records(folder, split, kind)
        tallies[split] = _Tally(len(source))
        some = sorted(draw.sample(range(len(source)), min(READ, len(source))))
        shown = set(draw.sample(some, min(SAMPLES, len(some))))
        samples[split] = []
        for index in tqdm(some, desc=f"reading {split}", unit=" records"):
            record = source[index]
            tallies[split].add(record)
            if index in shown and kind is PersonRecord:
                samples[split].append(_picture(record))
    rows = {split: tally.row() for split, tally in tallies.items()}
    html = jinja2.Environment(autoescape=True).from_string(TEMPLATE).render(
        style=page.STYLE,
        title=f"{made.get('set') or made.get('name') or 'records'}",
        subtitle=f"{folder}, at most {SAMPLES} pictures of each split drawn at random",
        names=list(next(iter(rows.values()))),
        splits=rows,
        samples={split: shown for split, shown in samples.items() if shown},
        charts=_chart(tallies),
        made=made,
    )  # fmt: skip
    partial = shards.partial_of(epath.Path(file))
    partial.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text(html)
    partial.replace(file)


def _picture(record: PersonRecord) -> _Shown:
    person = "" if record.person_id == UNKNOWN else f"person {record.person_id}: "
    label = f"{person}{record.image_id}"
    return _Shown(images.thumbnail(record.image), label, True, record.captions)
