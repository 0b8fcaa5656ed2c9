"""Self-contained HTML: tables, charts and galleries in, one page out."""

import base64
import dataclasses
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jinja2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

BARS = 50  # of a histogram, at most
# What metrics.jsonl holds of training beside losses.
NO_LOSSES = ("step", "lr", "gradient_norm", "images_per_second")
NO_LOSSES += ("temperature", "accuracy")
NO_LOSSES += ("step_seconds", "tflops_per_second", "mfu", "input_wait")
STYLE = """
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem;
        padding: 0 1rem; color: #222; background: #fff }
 h1 { font-size: 1.5rem; margin-bottom: 0 } h2 { margin: 2.2rem 0 .4rem }
 .sub, .below, figcaption, p.text { color: #666 } .sub { margin-top: .2rem }
 .warning { background: #fff3cd; border-left: 4px solid #e0a800; padding: .5rem .8rem }
 table { border-collapse: collapse; margin: .6rem 0 }
 th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #ddd;
          font-variant-numeric: tabular-nums; vertical-align: top }
 th { font-weight: 600 } .left { text-align: left } .below { font-size: .8rem }
 td:not(.left) .below { white-space: nowrap }
 td.best { font-weight: 700 } tr.faint { color: #888 } a { color: #1558b0 }
 table.bars td { padding: .12rem .9rem }
 .bar { position: relative; width: 22rem; height: 1.1rem; background: #f1f3f5 }
 .bar div { position: absolute; top: 0; bottom: 0 } .bar .value { background: #8fb4de }
 .bar .reach { top: .5rem; bottom: .5rem; background: #23466e }
 .bar .all { width: 2px; background: #c33; top: -.3rem; bottom: -.3rem }
 .chart svg { max-width: 100%; height: auto } q { font-style: italic }
 .row { display: flex; gap: .5rem; flex-wrap: wrap; margin: .4rem 0 1.4rem }
 figure { margin: 0; text-align: center; font-size: .8rem }
 figure img { height: 9rem; border: 3px solid #c33; border-radius: 4px }
 figure.right img { border-color: #292 } figure.first { margin-left: 1rem }
 figure.first img { border-style: dashed } .note { color: #555; font-size: .85rem }
"""
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width">
<style>
{{ style }}</style></head><body>
{% macro picture(p, name, kind) %}<figure class="{{ kind }}">
<img alt="{{ name }}" src="data:{{ p.mime }};base64,{{ p.base64 }}">
<figcaption>{{ name }} · {{ p.label }}{{ ' ✓' if p.right }}</figcaption></figure>
{% endmacro %}
<h1>{{ title }}</h1><p class="sub">{{ subtitle }}</p>
{% for text in warnings %}<p class="warning">{{ text }}</p>{% endfor %}
{% for section in sections %}{% if section.title %}<h2>{{ section.title }}</h2>{% endif %}
{% if section.text %}<p class="text">{{ section.text }}</p>{% endif %}
{% for part in section.parts %}
{% if part.kind == "table" %}<table><tr>
{% for head in part.heads %}<th{% if loop.index0 < part.names %} class="left"{% endif %}>
{{- head }}</th>{% endfor %}</tr>
{% for row in part.rows %}<tr>{% for cell in row %}<td class="
{{- 'left' if loop.index0 < part.names }}{{ ' best' if cell.best }}">
{%- if cell.link %}<a href="{{ cell.link }}">{{ cell.text }}</a>{% else %}{{ cell.text }}
{%- endif %}{% if cell.below %}<div class="below">{{ cell.below }}</div>{% endif %}</td>
{% endfor %}</tr>{% endfor %}</table>
{% elif part.kind == "chart" %}<div class="chart">{{ part.svg|safe }}</div>
{% elif part.kind == "bars" %}<table class="bars"><tr><th class="left">queries with</th><th></th>
{% for head in part.heads %}<th>{{ head }}</th>{% endfor %}
<th class="left">0 to {{ part.scale }}</th></tr>
{% for bar in part.bars %}<tr{% if bar.faint %} class="faint"{% endif %}>
<td class="left">{{ bar.group }}</td><td class="left">{{ bar.name }}</td>
{% for cell in bar.cells %}<td>{{ cell }}</td>{% endfor %}
<td><div class="bar"><div class="value" style="width:{{ part.share(bar.value) }}"></div>
{% if bar.low is not none %}<div class="reach" style="left:{{ part.share(bar.low) }};
{{- '' }}width:{{ part.share(bar.high - bar.low) }}"></div>{% endif %}
<div class="all" style="left:{{ part.share(part.all) }}"></div></div></td></tr>
{% endfor %}</table>
{% else %}<p><q>{{ part.query }}</q>
{% if part.note %}<span class="note">{{ part.note }}</span>{% endif %}</p>
<div class="row">
{% for p in part.pictures -%}
{{ picture(p, loop.index, 'right' if p.right else 'wrong') }}
{%- endfor %}
{% if part.first %}{{ picture(part.first, part.rank, 'right first') }}{% endif %}</div>
{% endif %}{% endfor %}{% endfor %}
</body></html>
"""


@dataclasses.dataclass(frozen=True)
class Cell:
    """A table's cell: its text, a smaller line below it, a page that it leads to."""

    text: str
    below: str = ""
    link: str = ""
    best: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """names: how many of the first columns are names, which stand on the left."""

    kind: ClassVar[str] = "table"
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    names: int = 1


@dataclasses.dataclass(frozen=True)
class Chart:
    """An SVG of ours, which is not escaped."""

    kind: ClassVar[str] = "chart"
    svg: str


@dataclasses.dataclass(frozen=True)
class Bar:
    """A value from 0 to 100 and its interval, with the cells that stand before it."""

    group: str
    name: str
    cells: Sequence[str]
    value: float
    low: float | None = None
    high: float | None = None
    faint: bool = False


@dataclasses.dataclass(frozen=True)
class Bars:
    """heads: of the cells. all: the value that every bar is compared with."""

    kind: ClassVar[str] = "bars"
    heads: Sequence[str]
    bars: Sequence[Bar]
    all: float

    @property
    def scale(self) -> int:
        """What the whole width stands for: a multiple of 10 that holds all."""
        ends = [bar.value if bar.high is None else bar.high for bar in self.bars]
        return max(10, 10 * math.ceil(max([self.all, *ends]) / 10))

    def share(self, value: float) -> str:
        """A value as a part of the whole width."""
        return f"{100 * value / self.scale:.2f}%"


@dataclasses.dataclass(frozen=True)
class Picture:
    """An encoded JPEG or PNG with what stands below it, and whether it is right."""

    encoded: bytes
    label: str
    right: bool

    @property
    def mime(self) -> str:
        """The image's media type."""
        return "image/png" if self.encoded.startswith(b"\x89PNG") else "image/jpeg"

    @property
    def base64(self) -> str:
        """The file, as a page can hold it."""
        return base64.b64encode(self.encoded).decode()


@dataclasses.dataclass(frozen=True)
class Gallery:
    """A query and the pictures found for it, best first.

    first: the first right answer, where it is not among them, and its rank.
    """

    kind: ClassVar[str] = "gallery"
    query: str
    pictures: Sequence[Picture]
    note: str = ""
    first: Picture | None = None
    rank: int = 0


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading, a sentence, and what stands below them in its order."""

    title: str
    parts: Sequence[Table | Chart | Bars | Gallery]
    text: str = ""


def svg(figure: Figure) -> str:
    """A figure as a page can hold it."""
    out = io.StringIO()
    # No date and fixed ids: the same figure gives the same text.
    with matplotlib.rc_context({"svg.hashsalt": "unipt_jax"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _panels(count: int) -> tuple[Figure, Sequence[Any]]:
    """A figure with so many panels side by side; it needs no display."""
    figure = Figure(figsize=(5.5 * count, 3.2))
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """All losses, accuracy and validation figures of metrics.jsonl as an SVG, or ""."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    shown = ("accuracy",), ("val_rank1", "val_map")
    losses = [n for n in names if n not in NO_LOSSES and not n.startswith("val_")]
    panels = [losses, *([n for n in panel if n in names] for panel in shown)]
    panels = [names for names in panels if names]
    if not panels:
        return ""
    figure, axes = _panels(len(panels))
    for axis, names in zip(axes, panels, strict=True):
        for name in names:
            points = [
                (row["step"], row[name]) for row in rows if row.get(name) is not None
            ]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set_xlabel("step")
        axis.legend(frameon=False)
    figure.suptitle(speed(rows), fontsize=9)
    return svg(figure)


def speed(rows: Sequence[Mapping[str, Any]]) -> str:
    """How fast a run trained, from the medians of its metrics.jsonl, or ""."""
    said = {
        "images_per_second": "{:,.0f} images a second",
        "tflops_per_second": "{:.4g} TFLOP/s",
        "mfu": "{:.1f}% of the devices' peak",
        "input_wait": "{:.0f}% of the time waiting for input",
    }
    values = {name: [row[name] for row in rows if name in row] for name in said}
    texts = [said[k].format(statistics.median(v)) for k, v in values.items() if v]
    return ", ".join(texts)


def ranks_and_scores(
    cmc: Mapping[str, Sequence[float]],
    right: np.ndarray | None = None,
    wrong: np.ndarray | None = None,
) -> str:
    """An SVG: curves of Rank-k by k; beside it how right and wrong answers score.

    cmc: name -> percent at k = 1, 2, ... right, wrong: (n,) shares of the answers by
    similarity, from -1 to 1; without them there is one panel.
    """
    figure, axes = _panels(1 if right is None else 2)
    for name, values in cmc.items():
        marks = dict(marker="." if len(values) < 3 else "")
        axes[0].plot(np.arange(1, len(values) + 1), values, label=name, **marks)
    axes[0].set(xlabel="k", ylabel="Rank-k (%)", ylim=(0, 102))
    axes[0].legend(frameon=False, loc="lower right")
    if right is not None:
        edges, *heights = bars_of(right, wrong)
        for name, bars, colour in (
            ("right answers", heights[0], "#292"),
            ("wrong answers", heights[1], "#c33"),
        ):
            style = dict(fill=True, alpha=0.5, color=colour, label=name)
            axes[1].stairs(bars, edges, **style)
        axes[1].set(xlabel="cosine similarity", ylabel="share of the answers (%)")
        axes[1].legend(frameon=False)
    return svg(figure)


def bars_of(
    right: np.ndarray, wrong: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two histograms from -1 to 1 -> edges and percents of `BARS` bars or fewer.

    right, wrong: (n,) shares. Bars begin and end where there is something.
    """
    used = np.flatnonzero(right + wrong)
    begin, end = used[0], used[-1] + 1
    starts = np.arange(begin, end, -(-(end - begin) // BARS))
    edges = np.linspace(-1, 1, len(right) + 1)[[*starts, end]]
    return edges, *(100 * np.add.reduceat(x[:end], starts) for x in (right, wrong))


def render(
    *,
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    warnings: Sequence[str] = (),
) -> str:
    """The page. Text is escaped; nothing is loaded from elsewhere."""
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    return template.render(
        style=STYLE,
        title=title,
        subtitle=subtitle,
        warnings=warnings,
        sections=sections,
    )
