"""The evaluate job: a trained model and record sets in, ranking figures out.

Every caption of a split is a query, every image of it is gallery, its own image too; a
match is the same identity, as the field counts.
"""

import dataclasses
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from unipt_jax import encoder as encoders
from unipt_jax import page, ranking, report, rundir, sharding
from unipt_jax.data import images, pipeline
from unipt_jax.data.records import UNKNOWN, PersonRecord, Records
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class RetrievalSet:
    """One split, read once: queries, gallery and who is who.

    queries: all captions. query_image: (Q,) the gallery number of each one's own image.
    person_ids: (N,) of the gallery; an image of unknown identity is a person by itself.
    """

    name: str
    records: Records
    queries: tuple[str, ...]
    query_image: np.ndarray
    person_ids: np.ndarray

    @property
    def query_ids(self) -> np.ndarray:
        """(Q,) person ids of the queries."""
        return self.person_ids[self.query_image]


def read_set(folder: str | os.PathLike, split: str) -> RetrievalSet:
    """Reads a split's captions and identities. Raises UserError if it has no caption."""
    records = Records(folder, split, PersonRecord)
    queries, query_image, ids = [], [], []
    for index in range(len(records)):
        record = records[index]
        known = record.person_id != UNKNOWN
        ids.append(record.person_id if known else UNKNOWN - 1 - index)
        queries += record.captions
        query_image += [index] * len(record.captions)
    if not queries:
        raise UserError(
            f"split '{split}' of {folder} has no captions, so there is nothing to "
            "search with; evaluate on a split that has"
        )
    name = f"{epath.Path(folder).name}/{split}"
    return RetrievalSet(
        name, records, tuple(queries), np.array(query_image), np.array(ids)
    )


def embed_set(
    encoder: Encoder, data: RetrievalSet, *, batch_size: int, threads: int
) -> tuple[np.ndarray, np.ndarray]:
    """(Q, P) embeddings of the queries and (N, P) of the gallery, on every process."""
    sharding.check_batch("evaluate.batch_size", batch_size, encoder.mesh)
    rows = sharding.local_rows(batch_size, encoder.mesh)
    ids, _ = encoder.tokenizer.encode(data.queries, encoder.lengths[-1])

    def place(batch: np.ndarray) -> jax.Array:
        return sharding.place_batch(batch, rows, batch_size, encoder.mesh)

    def pictures(index: np.ndarray) -> np.ndarray:
        way = encoder.size, encoder.fit
        return np.stack([pipeline.decode_image(data.records[i], *way) for i in index])

    gallery = [
        encoder.embed_images(place(batch))
        for batch in pipeline.in_order(
            len(data.records), batch_size, rows, pictures, threads=threads
        )
    ]
    queries = []
    for begin in range(0, len(ids), batch_size):
        index = np.minimum(begin + np.arange(batch_size), len(ids) - 1)
        tokens = encoder.pad([ids[i] for i in index])  # one length for the global batch
        queries.append(encoder.embed_texts(place(tokens[rows])))
    return np.concatenate(queries)[: len(ids)], np.concatenate(gallery)[
        : len(data.records)
    ]


def evaluate(
    encoder: Encoder, data: RetrievalSet, *, batch_size: int, threads: int
) -> tuple[dict[str, Any], np.ndarray, np.ndarray]:
    """The figures of `ranking.evaluate` for one split, and the two embeddings."""
    queries, gallery = embed_set(encoder, data, batch_size=batch_size, threads=threads)
    figures = ranking.evaluate(
        queries, gallery, data.query_ids, data.person_ids, mesh=encoder.mesh
    )
    return figures, queries, gallery


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The figures of several sets as a table for a terminal."""
    heads = ["set", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP", "queries", "gallery"]
    lines = [heads]
    for name, row in results.items():
        figures = [f"{row[key]:.2f}" for key in ranking.FIGURES]
        lines.append([name, *figures, str(row["queries"]), str(row["gallery"])])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def write_results(
    workdir: str | os.PathLike, results: Mapping[str, Any], html: str
) -> None:
    """Writes evaluation.json and report.html, whole or not at all, from process 0."""
    if jax.process_index() != 0:
        return
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    rundir.write_json(workdir / "evaluation.json", results)
    rundir.write_text(workdir / "report.html", html)


def report_page(
    encoder: Encoder,
    data: RetrievalSet,
    queries: np.ndarray,
    gallery: np.ndarray,
    figures: Mapping[str, Any],
    *,
    run: str | os.PathLike | None,
    examples: int,
    seed: int,
) -> str:
    """report.html: the figures, the run's curves, and top-10 galleries of some queries.

    run: the run directory whose metrics.jsonl is drawn, if any. examples: how many
    queries are drawn at random, by `seed`.
    """
    rng = np.random.default_rng(seed)
    some = np.sort(rng.choice(len(queries), min(examples, len(queries)), replace=False))
    k = min(10, len(gallery))
    scores, best = ranking.top_k(queries[some], gallery, k)
    galleries = []
    for query, score, index in zip(some, scores, best, strict=True):
        right = data.person_ids[index] == data.query_ids[query]
        shown = [
            page.Picture(
                images.thumbnail(data.records[int(i)].image), f"{s:.3f}", bool(r)
            )
            for i, s, r in zip(index, score, right, strict=True)
        ]
        galleries.append(page.Gallery(data.queries[query], shown))
    rows = report.read_metrics(run) if run else []
    heads = {"rank1": "Rank-1", "rank5": "Rank-5", "rank10": "Rank-10"}
    heads |= {"map": "mAP", "minp": "mINP", "queries": "queries", "gallery": "gallery"}
    return page.render(
        title=f"{data.name}: text-to-image retrieval",
        subtitle=encoder.name,
        figures={name: figures[key] for key, name in heads.items()},
        curves=page.curves(rows),
        galleries=galleries,
    )


def run(config: Any, workdir: str) -> None:
    """The job: evaluates `config.model` on `config.data.records` / `.split`."""
    if not config.model:
        raise UserError(
            "nothing to evaluate: give a run directory with --config.model=DIR"
        )
    if config.fit not in images.FITS:
        raise UserError(f"fit '{config.fit}' is not one of {', '.join(images.FITS)}")
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    data = read_set(config.data.records, config.data.split)
    encoder = encoders.load(
        config.model,
        checkpoint=str(config.checkpoint),
        mesh=mesh,
        size=tuple(config.size) if any(config.size) else None,
        fit=config.fit,
    )
    report.choices(
        "evaluate",
        {
            "model": encoder.name,
            "pictures": f"{encoder.size[0]}x{encoder.size[1]}, fit {encoder.fit}",
            "set": data.name,
            "queries": f"{len(data.queries)} (every caption)",
            "gallery": f"{len(data.records)} (every image, a query's own too)",
        },
    )
    begin = time.monotonic()
    batch = dict(batch_size=config.batch_size, threads=config.data.threads)
    figures, queries, gallery = evaluate(encoder, data, **batch)
    options = dict(run=config.model, examples=config.examples, seed=config.seed)
    html = report_page(encoder, data, queries, gallery, figures, **options)
    write_results(workdir, {data.name: figures | {"model": encoder.name}}, html)
    print(table({data.name: figures}))
    print(
        f"{report.clock(time.monotonic() - begin)} for {data.name}; see {workdir}/report.html"
    )
