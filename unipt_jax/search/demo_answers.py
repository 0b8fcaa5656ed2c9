"""What the demo's page answers: a sentence, a picture or a crop in, HTML out."""

import base64
import binascii
import dataclasses
import io
import logging
import os
from collections.abc import Callable, Sequence

from PIL import Image

from unipt_jax.data import images
from unipt_jax.errors import UserError
from unipt_jax.search import crops, demo_page, scan
from unipt_jax.search.remarks import ASKED_PHOTOGRAPH
from unipt_jax.search.searcher import Hit, Searcher
from unipt_jax.search.words import Words, tinted

MOST = 50  # answers to one question
LONGEST = 1000  # letters of a sentence
TRAIL = 20  # answers that one can go back to
ERROR = "error"
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class View:
    """An answer that one can come back to.

    kind: "text", "picture", "like" or `ERROR`. asked: the sentence, the path of the
    crop, or what is wrong.
    picture: what was searched with, a small JPEG, where it was a picture.
    """

    kind: str
    asked: str
    hits: Sequence[Hit] = ()
    words: Words | None = None
    notes: Sequence[str] = ()
    picture: bytes = b""

    @property
    def title(self) -> str:
        """What was asked, in short."""
        names = {"picture": "your picture", "like": f"more like {self.asked}"}
        return names.get(self.kind, f"\u201c{self.asked}\u201d")


Trail = tuple[View, ...]  # the answers of a session, the one shown last
Shown = tuple[str, Trail]


class Page:
    """What the page's events do: each gives the HTML to show and the session's trail."""

    def __init__(self, searcher: Searcher, *, limit: int) -> None:
        """limit: bytes of an uploaded picture."""
        self.searcher, self.limit = searcher, limit

    def text(self, sentence: str, k: float, trail: Trail) -> Shown:
        """The crops that a sentence describes."""
        return self._answered(lambda: self._text(str(sentence or ""), count(k)), trail)

    def picture(self, encoded: str, k: float, trail: Trail) -> Shown:
        """The crops that look like an uploaded picture, given in base64."""
        return self._answered(lambda: self._picture(encoded, count(k)), trail)

    def like(self, number: int, k: float, trail: Trail) -> Shown:
        """The crops that look like one of the index, by its stored embedding."""
        return self._answered(lambda: self._like(number, count(k)), trail)

    def back(self, trail: Trail) -> Shown:
        """The answer before the one that is shown."""
        if len(trail) < 2:
            return demo_page.EMPTY, ()
        return self._shown(lambda: trail[:-1], trail[:-1])

    def _answered(self, ask: Callable[[], View], trail: Trail) -> Shown:
        """Asks. What cannot be answered is a sentence, which nobody comes back to."""
        trail = tuple(view for view in trail if view.kind != ERROR)
        return self._shown(lambda: (*trail, ask())[-TRAIL:], trail)

    def _shown(self, go: Callable[[], Trail], trail: Trail) -> Shown:
        """Goes on from `trail`, and shows where that leads, or why it cannot be."""
        try:
            after = go()
            return self.shown(after), after
        except UserError as error:
            view = View(ERROR, str(error))
        except Exception:
            logger.exception("a question to the page could not be answered")
            view = View(ERROR, "This failed; the terminal that runs the page says how.")
        trail = (*trail, view)[-TRAIL:]
        return self.shown(trail), trail

    def _text(self, sentence: str, k: int) -> View:
        sentence = " ".join(sentence.split())
        if not sentence:
            raise UserError("Write a sentence that describes a person, then search.")
        if len(sentence) > LONGEST:
            raise UserError(
                f"The sentence has {len(sentence)} letters; write at most {LONGEST}."
            )
        (hits,) = self.searcher.by_text([sentence], k)
        words, notes = (
            self.searcher.words(sentence, hits),
            self.searcher.notes(sentence),
        )
        return View("text", sentence, hits, words, notes)

    def _picture(self, encoded: str, k: int) -> View:
        try:
            file = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError, TypeError) as error:
            raise UserError("Pick a picture; this is none.") from error
        if len(file) > self.limit:
            raise UserError(
                f"The picture has {len(file) / 1e6:.1f} MB; pick one of at most "
                f"{self.limit / 1e6:g} MB."
            )
        picture = opened(file)
        notes = []
        if scan.looks_like_a_photograph(picture.height, picture.width):
            notes = [ASKED_PHOTOGRAPH]
        (hits,) = self.searcher.by_picture([picture], k)
        return View("picture", "", hits, notes=notes, picture=_small(picture))

    def _like(self, number: int, k: int) -> View:
        index = self.searcher.index
        if not isinstance(number, int) or not 0 <= number < len(index):
            raise UserError("There is no such crop.")
        hits = self.searcher.like(number, k)
        notes = [] if hits else ["there is no other crop in the index"]
        picture = self._crop(number)[0]
        return View("like", self._path(number), hits, notes=notes, picture=picture)

    def shown(self, trail: Trail) -> str:
        """The last answer of a trail as HTML."""
        view, back = trail[-1], trail[-2].title if len(trail) > 1 else ""
        if view.kind == ERROR:
            return demo_page.error(view.asked, back)
        said = {"text": "", "picture": "like your picture"}
        words = view.words
        return demo_page.answer(
            view.kind,
            said.get(view.kind, f"more like {view.asked}"),
            [self._card(hit) for hit in view.hits],
            words=tinted(words) if words else (),
            notes=view.notes,
            picture=view.picture,
            back=back,
        )

    def _card(self, hit: Hit) -> demo_page.Card:
        jpeg, changed = self._crop(hit.number)
        marks = ["photograph"] * hit.photograph + ["changed"] * changed
        score, path = f"{hit.score:.3f}", self._path(hit.number)
        return demo_page.Card(hit.number, hit.rank, score, path, marks, jpeg)

    def _crop(self, number: int) -> tuple[bytes, bool]:
        try:
            shown = crops.read(self.searcher.index, number)
        except (OSError, MemoryError):  # whose text has the whole path
            return b"", False
        return shown.jpeg, shown.changed

    def _path(self, number: int) -> str:
        """A crop's path below its folder, with the folder's name if there are several."""
        index = self.searcher.index
        crop = index[number]
        several = len(index.folders) > 1
        name = os.path.basename(index.folders[crop.folder])
        return f"{name}/{crop.label}" if several else crop.label


def count(k: float) -> int:
    """How many answers are wanted, within what the page offers."""
    try:
        return max(1, min(MOST, int(k)))
    except (TypeError, ValueError, OverflowError):
        return 10


def opened(encoded: bytes) -> Image.Image:
    """An uploaded file as an upright RGB picture.

    Raises UserError for what is damaged, no picture of a common kind, or larger than
    any person's.
    """
    try:
        return images.upright(encoded)
    except OSError as error:
        raise UserError(
            f"This cannot be read as a picture ({error}); pick another one."
        ) from error


def _small(picture: Image.Image) -> bytes:
    small, out = picture.copy(), io.BytesIO()
    small.thumbnail((512, 256))
    small.save(out, "JPEG", quality=85, comment=b"")
    return out.getvalue()
