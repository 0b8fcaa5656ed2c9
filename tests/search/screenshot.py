"""The picture of the page in the README: `make demo` in one terminal, then in another

python tests/search/screenshot.py http://127.0.0.1:7860 docs/demo.png
"""

import argparse
import pathlib
import tempfile

import browser as browsers
from PIL import Image

SENTENCE = "a woman in a red coat with a black backpack"
SIZE = (1280, 800)


def take(page: browsers.Browser, url: str, file: pathlib.Path, sentence: str) -> None:
    """Asks the page and writes what is seen, as a PNG of 256 colours."""
    page.size(*SIZE)
    page.open(url)
    page.settled(browsers.INPUT)
    page.type(browsers.INPUT, sentence)
    page.click("#search")
    page.until(
        "document.querySelectorAll('.hits img').length > 0 && "
        "[...document.querySelectorAll('.hits img')].every(e => e.naturalHeight)"
    )
    page.evaluate("document.activeElement.blur()")
    page.until("document.getAnimations().length == 0")  # nothing is half faded in
    page.screenshot(file)
    with Image.open(file) as shot:
        shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
            file, optimize=True
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--sentence", default=SENTENCE)
    args = parser.parse_args()
    args.file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browsers.browser(folder) as page:
        take(page, args.url, args.file, args.sentence)
