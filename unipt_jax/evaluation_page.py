"""What evaluation.json says, and examples, in; pages for a browser out."""

from collections.abc import Mapping, Sequence
from typing import Any

from unipt_jax import page, tables
from unipt_jax.data import images
from unipt_jax.examples import Example, Examples
from unipt_jax.page import Cell, Section
from unipt_jax.retrieval import RetrievalSet
from unipt_jax.scoring import FEW

TITLES = {
    "random": "Queries at random",
    "worst": "The worst queries",
    "best": "The best queries",
}
TEXTS = {
    "random": "What the model finds, typically.",
    "worst": "Those of the lowest average precision, one a person: look here for what "
    "the model cannot tell apart, and for captions that are wrong.",
    "best": "Those of the highest average precision, one a person.",
}
FRAMES = (
    "Green frames and ✓ are right answers (the same person), red ones are wrong; below "
    "each picture stand its rank and its score, {score}. A dashed frame is the first "
    "right answer, where it is not among these."
)


def detail(
    entry: Mapping[str, Any],
    data: RetrievalSet,
    examples: Examples,
    metrics: Sequence[Mapping[str, Any]],
) -> str:
    """The page on one system and one set.

    metrics: the rows of the run's metrics.jsonl, none where there are none.
    """
    results = {data.name: entry}
    legend = tables.legend(results, both=True)
    said = [*filter(None, [legend]), *tables.notes(entry)]
    cmc = {name: _figures(entry, key)["cmc"] for key, name in tables.DIRECTIONS.items()}
    curve = page.ranks_and_scores(cmc, examples.right, examples.wrong)
    sections = [
        Section("", [_directions(entry)], text="; ".join(said)),
        Section("Ranks and scores", [page.Chart(curve)]),
        *_slices(entry),
        *_galleries(entry, data, examples),
    ]
    training = page.curves(metrics)
    if training:
        sections.append(Section("Training", [page.Chart(training)]))
    return page.render(
        title=f"{data.name}: text-to-image retrieval",
        subtitle=f"{entry['system']} ({entry['model']})",
        warnings=[*filter(None, [tables.warning(entry)])],
        sections=sections,
    )


def overview(results: tables.Results, links: Mapping[str, str]) -> str:
    """The page on several systems or sets, with links to the pages on each.

    links: names of `results` -> files beside this one.
    """
    systems, sets = tables.systems_of(results), tables.sets_of(results)
    names = {(e["system"], e["set"]): name for name, e in results.items()}
    said = [tables.legend(results, both=True)]
    said += ["bold is the best on a set"] if len(systems) > 1 else []
    said += tables.shared_notes(results)
    sections = [
        Section(
            "Rank-1 and mAP, text to image",
            [_matrix(results, systems, sets, names, links)],
            text="; ".join(filter(None, said)),
        )
    ]
    for name in sets:
        rows = [results[names[system, name]] for system in systems]
        cmc = {entry["system"]: entry["cmc"] for entry in rows}
        chart = page.Chart(page.ranks_and_scores(cmc))
        parts = [_systems(rows, key) for key in tables.DIRECTIONS]
        sections.append(Section(name, [*parts, chart]))
    return page.render(
        title="Text-to-image retrieval",
        subtitle=f"systems: {', '.join(systems)}; sets: {', '.join(sets)}",
        warnings=[*filter(None, map(tables.warning, results.values()))],
        sections=sections,
    )


def _figures(entry: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return tables.direction(entry, key)


def _cells(figures: Mapping[str, Any]) -> list[Cell]:
    shown = [
        Cell(f"{figures[name]:.2f}", below=_below(figures, name))
        for name in tables.FIGURES
    ]
    counts = [Cell(str(figures[name])) for name in ("queries", "gallery")]
    return [*shown, *counts]


def _below(figures: Mapping[str, Any], name: str) -> str:
    """How sure a figure is, over runs and over persons where both are known."""
    spread = tables.uncertainty(figures, name)
    if "std" in figures and "intervals" in figures:
        low, high = figures["intervals"][name]
        return f"{spread} [{low:.2f}, {high:.2f}]"
    return spread


def _directions(entry: Mapping[str, Any]) -> page.Table:
    """Both directions, and each run below them where there are several."""
    rows = []
    for key, name in tables.DIRECTIONS.items():
        rows.append([Cell(name), *_cells(_figures(entry, key))])
        for run in entry.get("runs", ()):
            below = ", ".join(filter(None, [run["model"], run["selected_on"]]))
            rows.append([Cell("", below=below), *_cells(_figures(run, key))])
    heads = ["", *tables.FIGURES.values(), "queries", "gallery"]
    return page.Table(heads, rows)


def _systems(entries: Sequence[Mapping[str, Any]], key: str) -> page.Table:
    """One set: a row for each system."""
    heads = [
        tables.DIRECTIONS[key],
        *tables.FIGURES.values(),
        "queries",
        "gallery",
    ]
    rows = [[Cell(e["system"]), *_cells(_figures(e, key))] for e in entries]
    return page.Table(heads, rows)


def _matrix(
    results: tables.Results,
    systems: Sequence[str],
    sets: Sequence[str],
    names: Mapping[tuple[str, str], str],
    links: Mapping[str, str],
) -> page.Table:
    """Systems by sets: Rank-1, mAP below it, and a way to the page on the two."""
    best = {
        name: max(results[names[system, name]]["rank1"] for system in systems)
        for name in sets
    }

    def cell(system: str, name: str) -> Cell:
        key = names[system, name]
        entry = results[key]
        texts = [
            f"{entry[figure]:.2f} {tables.uncertainty(entry, figure, interval=False)}"
            for figure in ("rank1", "map")
        ]
        return Cell(
            texts[0].strip(),
            below=f"mAP {texts[1].strip()}",
            link=links[key],
            best=len(systems) > 1 and entry["rank1"] == best[name],
        )

    rows = [[Cell(one), *(cell(one, name) for name in sets)] for one in systems]
    return page.Table(["", *sets], rows)


def _slices(entry: Mapping[str, Any]) -> list[Section]:
    """The slices, weakest first; those of few persons stand last, in grey."""
    rows = sorted(entry["slices"], key=lambda row: (row["persons"] < FEW, row["rank1"]))
    if not rows:
        return []
    bars = []
    for row in rows:
        low, high = row.get("intervals", {}).get("rank1", (None, None))
        counts = [str(row[name]) for name in ("queries", "persons")]
        figures = [f"{row['rank1']:.2f}", f"{row['map']:.2f}"]
        bars.append(
            page.Bar(
                row["group"],
                row["slice"],
                [*counts, *figures],
                row["rank1"],
                low,
                high,
                faint=row["persons"] < FEW,
            )
        )
    text = (
        "Rank-1 of a part of the captions, weakest first; the dark line is its "
        "interval, the red one Rank-1 of all captions. Grey ones, at the end, are of "
        f"fewer than {FEW} persons."
    )
    heads = ("queries", "persons", "Rank-1", "mAP")
    part = page.Bars(heads, bars, all=entry["rank1"])
    return [Section("Slices: where it fails", [part], text=text)]


def _galleries(
    entry: Mapping[str, Any], data: RetrievalSet, examples: Examples
) -> list[Section]:
    by = "after re-ranking" if entry["protocol"]["rerank"] else "cosine similarity"
    sections, frames = [], [FRAMES.format(score=by)]
    if "runs" in entry:
        frames.append(f"The run that is shown is {entry['runs'][0]['model']}.")
    for kind, title in TITLES.items():
        found = [_gallery(data, one) for one in examples.kinds[kind]]
        if found:
            said = " ".join([TEXTS[kind], *frames])
            sections.append(Section(title, found, text=said))
            frames = []
    return sections


def _gallery(data: RetrievalSet, example: Example) -> page.Gallery:
    def picture(image: int, score: float) -> page.Picture:
        return page.Picture(
            images.thumbnail(data.records[int(image)].image),
            f"{score:.3f}",
            bool(data.person_ids[image] == data.query_ids[example.query]),
        )

    shown = zip(example.images, example.scores, strict=True)
    beyond = example.rank > len(example.images)
    note = f"first right answer: rank {example.rank:,} of {len(data.person_ids):,}"
    return page.Gallery(
        data.queries[example.query],
        [picture(*one) for one in shown],
        note=note if beyond else "",
        first=picture(example.first, example.first_score) if beyond else None,
        rank=example.rank,
    )
