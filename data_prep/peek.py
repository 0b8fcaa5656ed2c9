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
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from data_prep.entries import SPLITS
from unipt_jax import files, page
from unipt_jax.data import images, records
from unipt_jax.data.records import UNKNOWN, CaptionRecord, PersonRecord, Records
from unipt_jax.errors import UserError

SAMPLES, READ = 24, 5000  # pictures shown, and records counted, of a split
_WORD = re.compile(r"[^\W\d_]+(?:[-'][^\W\d_]+)*")
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width">
<style>{{ style }}
 .row { gap: 1rem } .row figure { width: 6rem; text-align: left }
 .captioned figure { width: 12.6rem }
 figure img { border: 0; height: 12rem; max-width: 100%; object-fit: contain }
 figcaption { overflow-wrap: anywhere; color: #888 }
 figcaption p { margin: .35rem 0 0; color: #222 }
 td:first-child, th:first-child { text-align: left; vertical-align: top }
 td.left { text-align: left; white-space: pre-line; overflow-wrap: anywhere }
</style></head><body>
<h1>{{ title }}</h1><p class="sub">{{ subtitle }}</p>
<table><tr><th>split</th>{% for name in names %}<th>{{ name }}</th>{% endfor %}</tr>
{% for split, values in splits.items() %}<tr><td>{{ split }}</td>
{% for name in names %}<td>{{ values[name] }}</td>{% endfor %}</tr>{% endfor %}</table>
{% for split, pictures in samples.items() %}<h2>{{ split }}</h2>
<div class="row {{ 'captioned' if pictures | selectattr('captions') | list }}">
{% for p in pictures %}<figure>{% if p.encoded %}<img alt="{{ p.label }}"
src="data:{{ p.mime }};base64,{{ p.base64 }}">{% endif %}<figcaption>{{ p.label }}
{% for caption in p.captions %}<p>{{ caption }}</p>{% endfor %}</figcaption></figure>
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
    # Other letters are not in the font.
    words = collections.Counter({w: n for w, n in words.items() if max(w) < "\u0530"})
    count = len(panels) + bool(words)
    across, down = min(count, 3), -(-count // 3)
    figure = Figure(figsize=(3.8 * across, 3.4 * down))
    axes = list(figure.subplots(down, across, squeeze=False).flat)
    for axis in axes[count:]:
        axis.remove()
    axes = axes[:count]
    for axis, (name, values) in zip(axes, panels.items(), strict=False):
        low, high = min(values), max(values) + 1
        step = -(-(high - low) // 30)
        edges = [edge - 0.5 for edge in range(low, high + step, step)]
        axis.hist(values, bins=edges, edgecolor="white", linewidth=0.5)
        axis.set_xlabel(name)
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
        axis.yaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    if words:
        names, counts = zip(*reversed(words.most_common(20)), strict=True)
        axes[-1].barh(names, counts)
        axes[-1].set_xlabel("commonest words")
        axes[-1].tick_params(axis="y", labelsize=8)
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
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UserError(
            f"--peek {file}: {error.filename} is a file; give another page"
        ) from error
    fields, draw = records.fields(folder), random.Random(0)
    kind = PersonRecord if "image" in fields else CaptionRecord
    tallies, samples = {}, {}
    for split in sorted(records.splits(folder), key=_order):
        source = Records(folder, split, kind)
        tallies[split] = _Tally(len(source))
        some = sorted(draw.sample(range(len(source)), min(READ, len(source))))
        shown = set(draw.sample(some, min(SAMPLES, len(some))))
        samples[split] = []
        for index in tqdm(some, desc=f"reading {split}", unit=" records"):
            record = source[index]
            tallies[split].add(record)
            if index in shown:
                samples[split].append(_shown(record))
    rows = {split: tally.row() for split, tally in tallies.items()}
    names = [
        n for n in next(iter(rows.values())) if {r[n] for r in rows.values()} - {"-"}
    ]
    html = jinja2.Environment(autoescape=True).from_string(TEMPLATE).render(
        style=page.STYLE,
        title=f"{made.get('set') or made.get('name') or 'records'}",
        subtitle=f"{folder}, at most {SAMPLES} records of each split, drawn at random",
        names=names,
        splits=rows,
        samples=samples,
        charts=_chart(tallies),
        made={name: _plain(value) for name, value in made.items()},
    )  # fmt: skip
    partial = files.partial_of(epath.Path(file))
    try:
        partial.write_text(html)
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def _order(split: str) -> tuple[int, str]:
    return (SPLITS.index(split) if split in SPLITS else len(SPLITS), split)


def _plain(value: Any) -> str:
    """A value of the metadata as people read it, with an entry a line."""
    if isinstance(value, Mapping):
        return "\n".join(f"{k}: {_in_line(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return "\n".join(map(_in_line, value)) or "none"
    return _in_line(value)


def _in_line(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_in_line(v)}" for k, v in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_in_line, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _shown(record: PersonRecord | CaptionRecord) -> _Shown:
    """A record with its picture, if it has one."""
    if isinstance(record, CaptionRecord):
        return _Shown(b"", record.image_id, True, record.captions)
    person = "" if record.person_id == UNKNOWN else f"person {record.person_id}: "
    label = f"{person}{record.image_id}"
    return _Shown(images.thumbnail(record.image), label, True, record.captions)
