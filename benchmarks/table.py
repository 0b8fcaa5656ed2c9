"""README's table of speeds, from the figures in benchmarks/results.

    python -m benchmarks.table [--write]

Prints it; --write puts it between two comments in README.md. One section a machine, that
is, device, cores and versions; a row for each comparison that a benchmark made.
"""

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import report
from unipt_jax.errors import UserError

README = pathlib.Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"
NOT_SPEED = ("ablation",)  # has a table of its own

Figures = Mapping[str, Any]
Row = tuple[str, str, str, str]  # what, ours, reference, times as fast


def digits(value: float) -> str:
    """Three digits, or all of a large number: 0.542, 4.06, 14.9, 1,234."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.{3 if value < 0.9995 else 2 if value < 9.995 else 1}f}"


def seconds(value: float) -> str:
    """ "4.06 s"."""
    return f"{digits(value)} s"


def rate(value: float) -> str:
    """ "10.9 images/s"."""
    return f"{digits(value)} images/s"


def used(figures: Figures, name: str) -> str:
    """A contestant's share of the device's peak, where that is known."""
    return f", MFU {figures['mfu'][name]:.1f}%" if "mfu" in figures else ""


def train_step(result: Figures) -> Iterator[Row]:
    """A row for each reference and precision."""
    shortest, longest = result["caption_tokens"]
    for dtype, figures in result["dtypes"].items():
        times = figures["seconds"]
        what = (
            f"step of {result['tower']} + BERT-base, {dtype}, batch {result['batch']}"
        )
        what += f", captions of {shortest} to {longest} tokens"
        ours = seconds(times["ours"]) + used(figures, "ours")
        for name, value in times.items():
            if name != "ours":
                theirs = f"`{name}` {seconds(value)}{used(figures, name)}"
                yield what, ours, theirs, f"{value / times['ours']:.2f}"
                what = ours = ""


def end_to_end(result: Figures) -> Iterator[Row]:
    """Beside PyTorch, and beside data that lies on the device."""
    speed = result["images_per_second"]
    hours = {
        name: f"{value:,.1f} h" for name, value in result["projected_hours"].items()
    }
    what = f"records to weights, {result['tower']} + BERT-base, {result['dtype']}"
    what += f", batch {result['batch']}"
    ours = rate(speed["ours"])
    if "torch" in speed:
        theirs = f"DataLoader and `expert`, {rate(speed['torch'])}"
        yield what, ours, theirs, f"{result['ratio']:.2f}"
        projected = "projected: 1.3 M images x 15 epochs"
        yield projected, hours["ours"], hours["torch"], f"{result['ratio']:.2f}"
    if "resident" in speed:
        share = f"data on the device, {rate(speed['resident'])}"
        lost = f"{speed['ours'] / speed['resident']:.3f}"
        yield "the same step without its input", ours, share, lost


def contrastive(result: Figures) -> Iterator[Row]:
    """In tiles beside the dense loss, and the largest batch."""
    both, took = str(result["ratios_at"]), result["seconds_by_batch"]
    held = result["mib_by_batch"]

    def cost(way: str, batch: str) -> str:
        return f"{seconds(took[way][batch])}, {held[way][batch]:,} MiB"

    what = f"loss and gradients of {int(both):,} pairs, width {result['width']}"
    what += f", {result['virtual_devices']} devices"
    ours = f"tiles {cost('tiles', both)}"
    yield what, ours, f"dense {cost('dense', both)}", f"{result['ratio_dense']:.2f}"
    if "ratio_torch" in result:
        theirs = f"PyTorch, dense {cost('torch', both)}"
        yield "", "", theirs, f"{result['ratio_torch']:.2f}"
    most = str(result["batch"])
    yield f"the same of {result['batch']:,} pairs", cost("tiles", most), "-", "-"


def accumulation(result: Figures) -> Iterator[Row]:
    """In parts beside the whole batch at once."""
    took, held = result["seconds"], result["working_mib"]
    what = f"gradients of a batch of {result['batch']} in parts of {result['part']}, "
    what += f"towers of the {result['size']}, {result['dtype']}"
    parts, whole = (f"{seconds(took[n])}, {held[n]:,} MiB" for n in ("parts", "whole"))
    yield what, parts, f"all at once {whole}", f"{1 / result['times_the_whole']:.2f}"


def startup(result: Figures) -> Iterator[Row]:
    """The second start of a config, and its first."""
    what = "from the command to the first step, the quickstart's pre-training"
    first = f"nothing compiled yet, {seconds(result['first'])}"
    ratio = result["first"] / result["second"]
    yield what, f"again, {seconds(result['second'])}", first, f"{ratio:.2f}"


def rank(result: Figures) -> Iterator[Row]:
    """Ours beside a sort of every row."""
    size = f"{result['queries']:,} x {result['gallery']:,} x {result['dim']}"
    theirs = f"argsort {seconds(result['torch_seconds'])}"
    what = f"{size}, {result['identities']:,} persons"
    yield what, seconds(result["ours_seconds"]), theirs, f"{result['ratio']:.1f}"


def rank_million(result: Figures) -> Iterator[Row]:
    """Sizes that nobody else holds."""
    size = f"{result['queries']:,} x {result['gallery']:,} x {result['dim']}"
    yield f"{size}, all figures", seconds(result["rank_seconds"]), "-", "-"
    yield f"{size}, the ten best", seconds(result["top10_seconds"]), "-", "-"


def search(result: Figures) -> Iterator[Row]:
    """The best of a large gallery, beside FAISS."""
    what = f"the ten best of {result['gallery']:,} x {result['dim']}, "
    for kind, asked in (
        ("batch", f"{result['queries']:,} queries at once"),
        ("single", "one query"),
    ):
        theirs = f"`IndexFlatIP` {seconds(result['faiss'][f'{kind}_seconds'])}"
        for name in ("float16", "float32"):
            ours = f"{name} {seconds(result[name][f'{kind}_seconds'])}"
            ratio = result[f"ratio_{kind}_{name}"]
            yield what + asked, ours, theirs, f"{ratio:.2f}"
            what, asked, theirs = "", "", ""


def caption(result: Figures) -> Iterator[Row]:
    """The caption job beside the same CLIP in transformers."""
    ours = rate(result["ours_images_per_second"])
    for name, says, ratio in (
        ("torch", "transformers, eager attention", "ratio"),
        ("torch_sdpa", "the same with fused attention", "ratio_sdpa"),
    ):
        theirs = f"{says}, {rate(result[f'{name}_images_per_second'])}"
        what = "ViT-B/16, decode to written caption" if ours else ""
        yield what, ours, theirs, f"{result[ratio]:.2f}"
        ours = ""


def input_(result: Figures) -> Iterator[Row]:
    """Files to batches, without and with what the device does to each."""
    ours, with_device, theirs = (
        rate(result["images_per_second"][name]) for name in result["best"]
    )
    stored, size = ("x".join(map(str, result[name])) for name in ("stored", "size"))
    best = f"DataLoader at its best, {theirs}"
    what = f"{stored} JPEGs to {size} uint8 batches"
    yield what, ours, best, f"{result['ratio']:.2f}"
    what = "flipped and normalised by the device too"
    yield what, with_device, "", f"{result['ratio_with_device']:.2f}"


def prepare(result: Figures) -> Iterator[Row]:
    """Preparing a set beside the pictures alone."""
    source, target = ("x".join(map(str, result[name])) for name in ("from", "to"))
    speed = result["images_per_second"]
    theirs = f"as many processes of PIL alone, {rate(speed['bare'])}"
    what = f"{result['images']:,} JPEGs of {source} to records of {target}"
    yield what, rate(speed["ours"]), theirs, f"{result['ratio']:.2f}"


# In the order of the table, by the name of the benchmark.
ROWS: dict[str, Callable[[Figures], Iterator[Row]]] = {
    "train_step": train_step,
    "end_to_end": end_to_end,
    "contrastive": contrastive,
    "accumulation": accumulation,
    "startup": startup,
    "rank": rank,
    "rank_million": rank_million,
    "search": search,
    "caption": caption,
    "input": input_,
    "prepare": prepare,
}


def machine(result: Figures) -> str:
    """What a result was measured on, in words."""
    devices = f"{result['devices']} x " if result["devices"] > 1 else ""
    versions = [f"{name} {result[name]}" for name in ("jax", "torch", "numpy")]
    return (
        f"{devices}{result['device']}, {result['cores']} cores, "
        f"Python {result['python']}, {', '.join(versions)}"
    )


def render(results: Sequence[Figures]) -> str:
    """Results as Markdown. Raises UserError for a benchmark that has no rows here."""
    sections: dict[str, list[Figures]] = {}
    for result in results:
        if result["benchmark"] in NOT_SPEED:
            continue
        if result["benchmark"] not in ROWS:
            raise UserError(
                f"results of '{result['benchmark']}' have no place in the table; add a "
                "function to ROWS in benchmarks/table.py"
            )
        sections.setdefault(machine(result), []).append(result)
    order = list(ROWS)
    parts = []
    for title, members in sorted(sections.items()):
        lines = [
            f"On {title}:\n",
            "| benchmark | what | ours | reference | times as fast |",
            "|---|---|---|---|---|",
        ]
        for result in sorted(members, key=lambda r: order.index(r["benchmark"])):
            name = f"`{result['benchmark']}`"
            for row in ROWS[result["benchmark"]](result):
                lines.append("| " + " | ".join((name, *row)) + " |")
                name = ""
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def read(folder: pathlib.Path = report.RESULTS) -> list[Figures]:
    """All results that are kept in a folder."""
    return [json.loads(file.read_text()) for file in sorted(folder.glob("*.json"))]


def insert(text: str, table: str) -> str:
    """The text with the table between its two comments, instead of what was there.

    Raises UserError where they are not there, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise UserError(
            f"README.md must have '{BEGIN}' and '{END}' once each, in this order: the "
            "table goes between them"
        )
    return f"{before}{begin}\n\n{table}\n{end}{after}"


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the table, or writes it to README.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="to README.md")
    args = parser.parse_args(argv)
    try:
        table = render(read())
        print(table)
        if args.write:
            README.write_text(insert(README.read_text(), table))
    except UserError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
