"""Results of systems on sets in, text out: a terminal's table, Markdown, LaTeX."""

from collections.abc import Mapping, Sequence
from typing import Any

FIGURES = {
    "rank1": "Rank-1",
    "rank5": "Rank-5",
    "rank10": "Rank-10",
    "map": "mAP",
    "minp": "mINP",
}
COLUMNS = ("R1", "R5", "R10", "mAP", "mINP")
DIRECTIONS = {"": "text to image", "image_to_text": "image to text"}
KINDS = {"markdown": "rows.md", "latex": "rows.tex"}
ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "[": "{[}",  # these two mean something behind the end of a row
    "*": "{*}",
} | {character: f"\\{character}" for character in "&%$#_{}"}

Results = Mapping[str, Mapping[str, Any]]


def direction(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """An entry's figures in one direction, by the keys of `DIRECTIONS`."""
    return entry[key] if key else entry


def systems_of(results: Results) -> list[str]:
    """The systems, in order."""
    return list(dict.fromkeys(entry["system"] for entry in results.values()))


def sets_of(results: Results) -> list[str]:
    """The sets, in order."""
    return list(dict.fromkeys(entry["set"] for entry in results.values()))


def warning(entry: Mapping[str, Any]) -> str:
    """A sentence where a figure may not be taken for one of unseen data, or ""."""
    if not entry["selected_here"]:
        return ""
    return (
        f"warning: the checkpoint of {entry['system']} was chosen by its figures on "
        f"{entry['set']} itself, so they flatter it; report a split that chose nothing"
    )


def notes(entry: Mapping[str, Any]) -> list[str]:
    """Sentences on an entry without which its figures would say too much."""
    protocol = entry["protocol"]
    said = []
    if entry["selected_on"]:
        said.append(f"checkpoint chosen on: {entry['selected_on']}")
    said += entry.get("notes", ())
    if protocol["rerank"]:
        before = [f"{name} {_plain(entry, key)}" for key, name in DIRECTIONS.items()]
        said.append(f"re-ranked ({protocol['rerank']}); without: {'; '.join(before)}")
    for key, name in DIRECTIONS.items():
        figures = direction(entry, key)
        if figures["without_match"]:
            how = "left out of the means"
            if protocol["without_match"] == "zero":
                how = "each counts as 0"
            said.append(
                f"{name}: {figures['without_match']} of {figures['queries']} queries "
                f"have no right answer, {how}"
            )
        bounds = [
            f"{shown} {figures[f'{figure}_pessimistic']:.2f} to "
            f"{figures[f'{figure}_optimistic']:.2f}"
            for figure, shown in FIGURES.items()
            if f"{figures[f'{figure}_pessimistic']:.2f}"
            != f"{figures[f'{figure}_optimistic']:.2f}"
        ]
        if bounds:
            said.append(
                f"{name}: equal scores let figures depend on the order: "
                + ", ".join(bounds)
            )
    return said


def _plain(entry: Mapping[str, Any], key: str) -> str:
    """One direction's figures before re-ranking."""
    after, before = direction(entry, key), direction(entry["without_rerank"], key)
    shown = {name: f"{before[name]:.2f}" for name in FIGURES}
    if all(shown[name] == f"{after[name]:.2f}" for name in FIGURES):
        return (
            "the same figures, as where captions are near captions alone and images "
            "near images: neighbours then say nothing"
        )
    return ", ".join(f"{title} {shown[name]}" for name, title in FIGURES.items())


def uncertainty(figures: Mapping[str, Any], name: str, *, interval: bool = True) -> str:
    """How sure a figure is: "± 0.31" over runs, else "[49.10, 53.30]", or ""."""
    if "std" in figures:
        return f"± {figures['std'][name]:.2f}"
    if interval and "intervals" in figures:
        low, high = figures["intervals"][name]
        return f"[{low:.2f}, {high:.2f}]"
    return ""


def legend(results: Results, *, both: bool = False) -> str:
    """What stands behind the figures, in words. both: intervals beside the spread."""
    entries = list(results.values())
    said = []
    if any("std" in entry for entry in entries):
        said.append("± is the standard deviation over runs")
    if any("intervals" in entry and (both or "std" not in entry) for entry in entries):
        level = f"{entries[0]['protocol']['level']:.0%}"
        said.append(
            f"brackets are {level} intervals over persons ("
            f"{entries[0]['protocol']['bootstrap']} bootstrap draws)"
        )
    return "; ".join(said)


def shared_notes(results: Results) -> list[str]:
    """The notes on all entries, each once, with those of whom it holds."""
    of: dict[str, list[str]] = {}
    for name, entry in results.items():
        for note in notes(entry):
            of.setdefault(note, []).append(name)
    return [
        note if len(names) == len(results) else f"{', '.join(names)}: {note}"
        for note, names in of.items()
    ]


# --- terminal ------------------------------------------------------------------------


def terminal(results: Results) -> str:
    """Both directions' figures, what is to be known of them, and the matrix.

    results: what `evaluation.json` holds.
    """
    several = len(systems_of(results)) > 1
    blocks = []
    for key, direction_name in DIRECTIONS.items():
        lines = []
        for entry in results.values():
            lines += _lines(entry, key)
        heads = ["system", "set", *FIGURES.values(), "queries", "gallery"]
        kept = slice(0 if several else 1, None)
        lines = [line[kept] for line in [heads, *lines]]
        blocks.append(f"{direction_name}\n{aligned(lines)}")
    if len(results) > 1:
        blocks += [_matrix(results, figure) for figure in ("rank1", "map")]
    return "\n\n".join([*blocks, *_paragraph(results, "{}")])


def _lines(entry: Mapping[str, Any], key: str) -> list[list[str]]:
    """A row of figures, one below it of how sure they are, and one for each run."""
    figures = direction(entry, key)
    lines = [
        [
            entry["system"],
            entry["set"],
            *(f"{figures[name]:.2f}" for name in FIGURES),
            str(figures["queries"]),
            str(figures["gallery"]),
        ]
    ]
    unsure = [uncertainty(figures, name) for name in FIGURES]
    if any(unsure):
        lines.append(["", "", *unsure, "", ""])
    for run in entry.get("runs", ()):
        own = [f"{direction(run, key)[name]:.2f}" for name in FIGURES]
        lines.append(["", run["model"].rsplit("/")[-1], *own, "", ""])
    return lines


def _matrix(results: Results, figure: str) -> str:
    """Systems by sets, text to image."""
    cells = {(e["system"], e["set"]): e for e in results.values()}
    sets = sets_of(results)
    lines = [["", *sets]]
    for system in systems_of(results):
        own = [cells[system, name] for name in sets]
        shown = [
            f"{e[figure]:.2f} {uncertainty(e, figure, interval=False)}".strip()
            for e in own
        ]
        lines.append([system, *shown])
    return f"{FIGURES[figure]}, text to image\n{aligned(lines)}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.rjust(n) for cell, n in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


# --- rows for a paper ----------------------------------------------------------------


def markdown(results: Results) -> str:
    """A table for each direction."""
    blocks = []
    for key, name in DIRECTIONS.items():
        lines = [["System", "Set", *COLUMNS], ["---"] * 2 + ["---:"] * len(COLUMNS)]
        for entry in results.values():
            cells = [
                cell.replace("|", r"\|") for cell in (entry["system"], entry["set"])
            ]
            lines.append([*cells, *_cells(entry, key)])
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        blocks.append(f"**{name[0].upper()}{name[1:]}**\n\n{table}")
    return "\n\n".join([*blocks, *_paragraph(results, "- {}")]) + "\n"


def latex(results: Results) -> str:
    """A tabular for booktabs, both directions in it; remarks stand in comments."""
    lines = [r"\begin{tabular}{ll" + "r" * len(COLUMNS) + "}", r"\toprule"]
    lines.append(" & ".join(["System", "Set", *COLUMNS]) + r" \\")
    for key, name in DIRECTIONS.items():
        lines.append(r"\midrule")
        lines.append(rf"\multicolumn{{{2 + len(COLUMNS)}}}{{l}}{{\emph{{{name}}}}} \\")
        for entry in results.values():
            cells = [escaped(entry["system"]), escaped(entry["set"])]
            cells += [cell.replace("±", r"$\pm$") for cell in _cells(entry, key)]
            lines.append(" & ".join(cells) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*_paragraph(results, "% {}"), *lines]) + "\n"


def escaped(text: str) -> str:
    """A text as LaTeX shows it."""
    return "".join(ESCAPES.get(character, character) for character in text)


def _cells(entry: Mapping[str, Any], key: str) -> list[str]:
    figures = direction(entry, key)
    return [
        f"{figures[name]:.2f} {uncertainty(figures, name)}".strip() for name in FIGURES
    ]


def _paragraph(results: Results, form: str) -> list[str]:
    """Legend, notes and warnings, a line each; nothing where there are none."""
    warnings = map(warning, results.values())
    said = [legend(results), *shared_notes(results), *warnings]
    lines = [form.format(one) for one in said if one]
    return ["\n".join(lines)] if lines else []


FORMATS = {"markdown": markdown, "latex": latex}
