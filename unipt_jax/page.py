"""Self-contained HTML: figures, curves and galleries in, one page out."""

import base64
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure

STYLE = """
 body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem;
        padding: 0 1rem; color: #222; }
 h1 { font-size: 1.5rem; margin-bottom: 0 } .sub { color: #666; margin-top: .2rem }
 table { border-collapse: collapse } th, td { padding: .3rem .9rem; text-align: right;
        border-bottom: 1px solid #ddd }
 .row { display: flex; gap: .5rem; flex-wrap: wrap; margin: .4rem 0 1.4rem }
 figure { margin: 0; text-align: center; font-size: .8rem; color: #555 }
 figure img { height: 9rem; border: 3px solid #c33; border-radius: 4px }
 figure.right img { border-color: #292 } q { font-style: italic }
 .curves svg { max-width: 100%; height: auto }
"""
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width">
<style>
{{ style }}</style></head><body>
<h1>{{ title }}</h1><p class="sub">{{ subtitle }}</p>
<table><tr>{% for name in figures %}<th>{{ name }}</th>{% endfor %}</tr>
<tr>{% for value in figures.values() %}<td>{{ value }}</td>{% endfor %}</tr></table>
{% if curves %}<h2>Training</h2><div class="curves">{{ curves|safe }}</div>{% endif %}
<h2>Queries and their best matches</h2>
<p>Green frames are right answers (the same person), red ones are wrong; below each
picture is its cosine similarity.</p>
{% for gallery in galleries %}<p><q>{{ gallery.query }}</q></p><div class="row">
{% for p in gallery.pictures %}<figure class="{{ 'right' if p.right else 'wrong' }}">
<img alt="match {{ loop.index }}" src="data:{{ p.mime }};base64,{{ p.base64 }}">
<figcaption>{{ loop.index }} · {{ p.label }}</figcaption></figure>
{% endfor %}</div>{% endfor %}
</body></html>
"""


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
    """A query and the pictures found for it, best first."""

    query: str
    pictures: Sequence[Picture]


def svg(figure: Figure) -> str:
    """A figure as a page can hold it."""
    out = io.StringIO()
    # No date and fixed ids: the same figure gives the same text.
    with matplotlib.rc_context({"svg.hashsalt": "unipt_jax"}):
        figure.savefig(out, format="svg", bbox_inches="tight", metadata={"Date": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def curves(rows: Sequence[Mapping[str, Any]]) -> str:
    """The losses and the validation figures of metrics.jsonl as an SVG, or ""."""
    panels = [
        [
            name
            for name in ("loss", "contrastive", "mlm")
            if any(name in r for r in rows)
        ],
        [name for name in ("val_rank1", "val_map") if any(name in r for r in rows)],
    ]
    panels = [names for names in panels if names]
    if not panels:
        return ""
    figure = Figure(figsize=(5.5 * len(panels), 3.2))  # needs no display
    axes = figure.subplots(1, len(panels), squeeze=False)
    for axis, names in zip(axes[0], panels, strict=True):
        for name in names:
            points = [
                (row["step"], row[name]) for row in rows if row.get(name) is not None
            ]
            axis.plot(*zip(*points, strict=True), label=name)
        axis.set_xlabel("step")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    return svg(figure)


def render(
    *,
    title: str,
    subtitle: str,
    figures: Mapping[str, Any],
    curves: str,
    galleries: Sequence[Gallery],
) -> str:
    """The page. Text is escaped; nothing is loaded from elsewhere."""
    shown = {k: f"{v:.2f}" if isinstance(v, float) else v for k, v in figures.items()}
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    return template.render(
        style=STYLE,
        title=title,
        subtitle=subtitle,
        figures=shown,
        curves=curves,
        galleries=galleries,
    )
