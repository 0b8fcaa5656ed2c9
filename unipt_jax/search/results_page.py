"""Answers in, results.html out: a page that stands alone."""

import dataclasses
from collections.abc import Sequence

import jinja2

from unipt_jax import page
from unipt_jax.data import images
from unipt_jax.retrieval import progress
from unipt_jax.search import answers, crops
from unipt_jax.search.answers import Answer, Found
from unipt_jax.search.index import Index
from unipt_jax.search.remarks import unread
from unipt_jax.search.scan import plain
from unipt_jax.search.words import LEGEND, TINTS, Tinted, tinted

CROPS = 100  # a query, at most
STYLE = """
 h2 { font-size: 1.15rem } h2 .count { color: #666; font-weight: 400 }
 .words { line-height: 2.6 }
 .words span { display: inline-block; padding: 0 .3rem; border-radius: 4px;
               text-align: center; line-height: 1.25; font-style: italic }
 .words small { display: block; font: 400 .7rem system-ui; color: #444 }
 .row { gap: .9rem } figure { width: 9rem; overflow-wrap: anywhere }
 figure img { border: 0; max-width: 100%; height: 10rem; object-fit: contain;
              border-radius: 4px; background: #f1f3f5 }
 figure .gone { height: 10rem; display: flex; align-items: center; padding: 0 .5rem;
                justify-content: center; background: #ddd; border-radius: 4px }
 figure.asked { border: 2px dashed #1558b0; border-radius: 6px; padding: .3rem }
 figcaption b { color: #222 } .remark { color: #8a5300; display: block }
"""
TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Search results</title>
<meta name="viewport" content="width=device-width">
<style>
{{ style }}</style></head><body>
{% macro picture(jpeg, name) %}<img alt="{{ name }}"
{{- '' }} src="data:{{ jpeg.mime }};base64,{{ jpeg.base64 }}">{% endmacro %}
<h1>Search results</h1><p class="sub">{{ subtitle }}</p>
{% if legend %}<p class="sub">{{ legend }}</p>{% endif %}
{% for text in warnings %}<p class="warning">{{ text }}</p>{% endfor %}
{% for one in answers %}<section>
<h2><span class="count">{{ loop.index }}</span> {% if one.asked %}{{ one.text }}
{%- else %}<q>{{ one.text }}</q>{% endif %}</h2>
{% if one.asked %}<figure class="asked">{{ picture(one.asked, one.text) }}
<figcaption>the query</figcaption></figure>{% endif %}
{% if one.words %}<p class="words">{% for word in one.words %}
<span style="background: {{ word.colour }}">{{ word.text }}<small>{{ word.effect }}</small></span>
{% endfor %}</p>{% endif %}
{% for note in one.notes %}<p class="note">{{ note }}</p>{% endfor %}
<div class="row">{% for crop in one.crops %}<figure title="{{ crop.place }}">
{% if crop.jpeg %}{{ picture(crop.jpeg, crop.place) }}
{%- else %}<div class="gone">{{ crop.missing }}</div>{% endif %}
<figcaption><b>{{ crop.rank }} · {{ crop.score }}</b><br>{{ crop.label }}
{%- for remark in crop.remarks %}<span class="remark">{{ remark }}</span>{% endfor -%}
</figcaption></figure>
{% endfor %}</div></section>
{% endfor %}</body></html>
"""


@dataclasses.dataclass(frozen=True)
class _Crop:
    rank: int
    score: str
    place: str
    label: str
    remarks: Sequence[str]
    jpeg: page.Picture | None
    missing: str


@dataclasses.dataclass(frozen=True)
class _Section:
    text: str
    asked: page.Picture | None
    words: Sequence[Tinted]
    notes: Sequence[str]
    crops: Sequence[_Crop]


def render(index: Index, found: Sequence[Answer]) -> str:
    """The page on the first answers; text is escaped, nothing is loaded from elsewhere.

    A crop whose file cannot be shown any more is a grey field that says why.
    """
    shown = found[: answers.SHOWN]
    warnings = []
    if len(found) > len(shown):
        warnings.append(
            f"Here are the first {len(shown)} of {len(found)} queries; results.json has "
            "all of them."
        )
    if any(len(one.found) > CROPS for one in shown):
        warnings.append(
            f"Of each query the best {CROPS} crops are shown; results.json has all."
        )
    subtitle = (
        f"{len(index):,} crops of {', '.join(map(plain, index.folders))}, ranked "
        f"by {plain(index.model.said)}; below each crop stand its rank, its "
        "score (cosine similarity) and its path."
    )
    coloured = any(one.words is not None for one in shown)
    jpegs: dict[int, page.Picture | str] = {}
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE)
    return template.render(
        style=page.STYLE + STYLE,
        subtitle=subtitle,
        legend=f"{LEGEND} {TINTS}" if coloured else "",
        warnings=warnings,
        answers=[_section(index, one, jpegs) for one in progress(shown, "the page")],
    )


def _section(index: Index, one: Answer, jpegs: dict) -> _Section:
    asked = None
    if one.query.kind == "picture":
        asked = page.Picture(images.thumbnail(one.query.encoded), "", right=True)
    return _Section(
        text=plain(one.query.text),
        asked=asked,
        words=tinted(one.words) if one.words is not None else (),
        notes=one.notes,
        crops=[_crop(index, crop, jpegs) for crop in one.found[:CROPS]],
    )


def _crop(index: Index, found: Found, jpegs: dict) -> _Crop:
    """jpegs: what is known of some crops by number: several queries may find one."""
    hit = found.hit
    if hit.number not in jpegs:
        jpegs[hit.number] = _jpeg(index, hit.number)
    jpeg = jpegs[hit.number]
    one = len(index.folders) == 1
    return _Crop(
        rank=hit.rank,
        score=f"{hit.score:.3f}",
        place=answers.place(index, hit),
        label=plain(hit.crop.label) if one else answers.place(index, hit),
        remarks=found.notes,
        jpeg=None if isinstance(jpeg, str) else jpeg,
        missing=jpeg if isinstance(jpeg, str) else "",
    )


def _jpeg(index: Index, number: int) -> page.Picture | str:
    """A crop as a page can hold it, or why there is none."""
    try:
        return page.Picture(crops.read(index, number).jpeg, "", right=True)
    except (OSError, MemoryError) as error:
        return unread(error)
