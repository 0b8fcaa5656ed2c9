"""What the demo's page looks like: an answer in, HTML out; its styles and scripts."""

import base64
import dataclasses
from collections.abc import Sequence

import jinja2

from unipt_jax.search.remarks import CHANGED, PHOTOGRAPH
from unipt_jax.search.words import LEGEND, TINTS, Tinted

# What stands below a crop, and what it means.
MARKS = {
    "photograph": "photograph?",
    "changed": "changed",
}
MARKS_SAID = {
    "photograph": f"\u201cphotograph?\u201d: {PHOTOGRAPH}.",
    "changed": f"\u201cchanged\u201d: {CHANGED}.",
}

TEMPLATE = """<section class="answer" data-kind="{{ kind }}">
{% if back %}<button type="button" class="back" data-back>&larr; back to
 {{ back }}</button>{% endif %}
<div class="asked">{% if picture %}<img alt="the picture that was searched for"
 src="{{ picture }}">{% endif %}<p>{{ said }}
{%- for w in words %} <span class="word" title="{{ w.effect }}" style="background:
{{- w.colour }}">{{ w.text }}</span>{% endfor %}</p></div>
{% if words %}<p class="faint legend">{{ legend }}</p>{% endif %}
{% for note in notes %}<p class="note">{{ note }}</p>{% endfor %}
{% for mark, meaning in meanings.items() %}{% if mark in marks %}<p class="faint">
{{- meaning }}</p>{% endif %}{% endfor %}
<ol class="hits">{% for card in cards %}<li>
<button type="button" data-number="{{ card.number }}"
 title="find more like this" aria-label="find more like number {{ card.rank }}">
{% if card.picture %}<img alt="" src="{{ card.picture }}">
{% else %}<span class="gone">the file is gone, or cannot be read</span>{% endif %}</button>
<p class="line"><b>{{ card.rank }}</b><span class="score">{{ card.score }}</span></p>
<p class="path" title="{{ card.path }}">{{ card.path }}</p>
{% for mark in card.marks %}<p class="mark">{{ names[mark] }}</p>{% endfor %}</li>
{% endfor %}</ol></section>
"""
ERROR = """<section class="answer" data-kind="error">
{% if back %}<button type="button" class="back" data-back>&larr; back to
 {{ back }}</button>{% endif %}
<p class="wrong" role="alert">{{ sentence }}</p></section>"""
EMPTY = """<section class="answer" data-kind="empty"><p class="faint">
Describe a person, or pick a picture of one. The best matches appear here; click one to
find more like it.</p></section>"""
HEAD = """<h1>Search {{ count }} pictures of persons</h1>
<p class="faint">A score is the cosine of the angle between what is asked and a picture:
 it orders the answers, and says nothing of how sure one may be of a person.<br>
Model: {{ model }}</p>"""
PICKER = """<label class="picker"><input type="file" accept="image/*">
<span>Search by a picture</span></label><p class="picked faint" role="status"></p>"""

STYLE = """
.gradio-container { max-width: 80rem !important; margin: 0 auto }
.gradio-container .html-container { padding: 0 }
.gradio-container h1 { font-size: 1.5rem; margin: .4rem 0 .2rem }
.gradio-container .faint { font-size: .85rem; opacity: .75; margin: .2rem 0 }
.legend { max-width: 62rem }
.examples { flex-wrap: wrap; gap: .4rem }
.examples button { flex: 0 1 auto; min-width: 0; font-weight: 400; text-align: left }
.answer { min-height: 12rem }
.answer button { cursor: pointer; font: inherit; color: inherit }
.answer .back { border: 1px solid var(--border-color-primary); border-radius: 6px;
 padding: .2rem .6rem; background: var(--background-fill-secondary); max-width: 100%;
 overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.asked { display: flex; gap: .8rem; align-items: center; margin: .6rem 0 .2rem }
.asked img { height: 6rem; border-radius: 6px; margin: 0 } .asked p { font-size: 1.15rem }
.word { padding: .05rem .25rem; border-radius: 4px }
.note { border-left: 4px solid #d99a00; padding: .15rem .6rem; margin: .3rem 0 }
.wrong { border-left: 4px solid #c33; padding: .3rem .7rem; margin: .6rem 0 }
.hits { list-style: none; margin: 1rem 0; padding: 0; display: grid; gap: 1rem .6rem;
 grid-template-columns: repeat(auto-fill, minmax(5.7rem, 1fr)) }
.hits li { min-width: 0; margin: 0; padding: 0 } .hits p { margin: .1rem 0; line-height: 1.25 }
.hits button { display: flex; width: 100%; height: 15rem; padding: 0; overflow: hidden;
 align-items: center; justify-content: center; border-radius: 8px;
 border: 1px solid var(--border-color-primary);
 background: var(--background-fill-secondary) }
.hits button:hover, .hits button:focus-visible { outline: 3px solid #3b82f6 }
.hits img { width: 100%; height: 100%; object-fit: contain; margin: 0 }
.gone { padding: .4rem; font-size: .8rem }
.line { display: flex; justify-content: space-between }
.score { font-variant-numeric: tabular-nums }
.path { font-size: .75rem; opacity: .75; overflow-wrap: anywhere; overflow: hidden;
 display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical }
.mark { font-size: .75rem; color: #c2410c } .dark .mark { color: #fb923c }
.picker { display: block; text-align: center; cursor: pointer; padding: .35rem .8rem;
 border: 1px dashed var(--border-color-primary); border-radius: 8px }
.picker:hover, .picker:focus-within { outline: 2px solid #3b82f6 }
.picker input { position: absolute; width: 1px; height: 1px; opacity: 0 }
.picked:empty { display: none }
@media (max-width: 40rem) { .hits button { height: 12rem } .asked p { font-size: 1rem } }
"""
# An element that Gradio replaces when there is an answer: what hears lies above it.
CLICKS = """
element.addEventListener('click', event => {
  const card = event.target.closest('[data-number]');
  if (card) trigger('select', {number: Number(card.dataset.number)});
  else if (event.target.closest('[data-back]')) trigger('undo');
});
"""
PICKS = """
element.addEventListener('change', event => {
  const file = event.target.files[0], said = element.querySelector('.picked');
  if (!file) return;
  event.target.value = '';
  said.textContent = '';
  if (file.size > LIMIT) {
    said.textContent = `${file.name} has ${(file.size / 1e6).toFixed(1)} MB; ` +
      `choose one of at most ${LIMIT / 1e6} MB`;
    return;
  }
  const reader = new FileReader();
  reader.onload = () => trigger('upload', {picture: reader.result.split(',')[1]});
  reader.onerror = () => { said.textContent = `${file.name} cannot be read`; };
  reader.readAsDataURL(file);
});
"""

_templates = jinja2.Environment(autoescape=True)


@dataclasses.dataclass(frozen=True)
class Card:
    """A crop found, as it is shown.

    marks: of `MARKS`. jpeg: b"" where the file cannot be read.
    """

    number: int
    rank: int
    score: str
    path: str
    marks: Sequence[str]
    jpeg: bytes

    @property
    def picture(self) -> str:
        """The crop, within the page."""
        return within(self.jpeg)


def within(jpeg: bytes) -> str:
    """A JPEG as the address of a picture, "" of none."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}" if jpeg else ""


def answer(
    kind: str,
    said: str,
    cards: Sequence[Card],
    *,
    words: Sequence[Tinted] = (),
    notes: Sequence[str] = (),
    picture: bytes = b"",
    back: str = "",
) -> str:
    """The crops found, best first, below what was asked. All text is escaped.

    kind: "text", "picture" or "like". back: what the answer before this one was to.
    """
    return _templates.from_string(TEMPLATE).render(
        kind=kind,
        said=said,
        cards=cards,
        words=words,
        legend=f"{LEGEND} {TINTS}",
        names=MARKS,
        meanings=MARKS_SAID,
        marks={mark for card in cards for mark in card.marks},
        notes=notes,
        picture=within(picture),
        back=back,
    )


def error(sentence: str, back: str = "") -> str:
    """One sentence instead of an answer."""
    return _templates.from_string(ERROR).render(sentence=sentence, back=back)


def head(count: int, model: str) -> str:
    """What is searched, with what."""
    return _templates.from_string(HEAD).render(count=f"{count:,}", model=model)


def picks(limit: int) -> str:
    """The script that sends a picture of at most so many bytes."""
    return PICKS.replace("LIMIT", str(limit))
