"""The evaluate job: trained models and record sets in, figures and pages out."""

import dataclasses
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath

from unipt_jax import encoder as encoders
from unipt_jax import (
    evaluation_page,
    ranking,
    report,
    rundir,
    scoring,
    sharding,
    systems,
    tables,
)
from unipt_jax.data import images
from unipt_jax.encoder import Encoder
from unipt_jax.errors import UserError
from unipt_jax.examples import Examples
from unipt_jax.examples import find as find_examples
from unipt_jax.retrieval import RetrievalSet, embed_set, read_set
from unipt_jax.scoring import Protocol, Scored

__all__ = ["Options", "RetrievalSet", "figures", "read_set", "report_run", "run"]


@dataclasses.dataclass(frozen=True)
class Options:
    """How sets are evaluated, and what is written.

    protocol: how figures are counted. examples: queries of each kind that are shown.
    seed: of those at random. rows: of `tables.KINDS`, files with rows for a paper.
    """

    batch_size: int = 256
    threads: int = 8
    protocol: Protocol = dataclasses.field(default_factory=Protocol)
    examples: int = 8
    seed: int = 0
    rows: tuple[str, ...] = ()


def figures(
    encoder: Encoder, data: RetrievalSet, *, batch_size: int, threads: int
) -> dict[str, Any]:
    """The text-to-image figures of `ranking.evaluate` alone, as validation needs them."""
    queries, gallery = embed_set(encoder, data, batch_size=batch_size, threads=threads)
    return ranking.evaluate(
        queries, gallery, data.query_ids, data.person_ids, mesh=encoder.mesh
    )


def report_run(
    workdir: str | os.PathLike,
    encoder: Encoder,
    sets: Sequence[RetrievalSet],
    options: Options,
) -> dict[str, Any]:
    """Evaluates a run at its end: writes and prints all that the job would.

    workdir: of the run. encoder: with its `selected_on`, a split of the run's own set.
    Returns what evaluation.json holds.
    """
    begin = time.monotonic()
    name = epath.Path(workdir).name
    outputs = _Outputs(workdir, options, [name], [data.name for data in sets])
    for data in sets:
        scored, shown = _measure(encoder, data, options)
        here = scored.selected_on == data.split
        entry = scoring.entry(
            name, [scored], data, options.protocol, selected_here=here
        )
        outputs.add(entry, data, shown, run=workdir)
    return outputs.finish(begin)


def run(config: Any, workdir: str) -> None:
    """The job: every system of `config.model` on every set of `config.data.records`."""
    options = _options(config)
    found = systems.read_systems(config.model)
    places = systems.read_sets(config.data.records, config.data.split)
    mesh = sharding.make_mesh(data=config.mesh.data, fsdp=config.mesh.fsdp)
    sharding.check_batch("batch_size", config.batch_size, mesh)
    # All is looked at before anything long begins.
    kinds = {
        model: systems.check(model, str(config.checkpoint))
        for system in found
        for model in system.models
    }
    sets = [
        read_set(*place, name=name)
        for place, name in zip(places, systems.set_names(places), strict=True)
    ]
    if jax.process_index() == 0:
        report.choices("evaluate", _choices(found, sets, config, options))
    begin = time.monotonic()
    names = [system.name for system in found]
    outputs = _Outputs(workdir, options, names, [data.name for data in sets])
    for system in found:
        _evaluate(config, system, sets, options, kinds, mesh, outputs)
    outputs.finish(begin)


def _evaluate(
    config: Any,
    system: systems.System,
    sets: Sequence[RetrievalSet],
    options: Options,
    kinds: Mapping[str, str],
    mesh: Any,
    outputs: "_Outputs",
) -> None:
    """One system on every set; what is known of a set is written at once."""
    scored: dict[str, list[Scored]] = {data.name: [] for data in sets}
    shown: dict[str, Examples] = {}
    for model in system.models:
        encoder = _load(config, model, kinds, mesh)
        for data in sets:
            ranked = scored[data.name]
            one, look = _measure(encoder, data, options, look=not ranked)
            ranked.append(one)
            shown.setdefault(data.name, look)
            if len(ranked) < len(system.models):
                continue
            here = any(
                _selected_here(name, each, data)
                for name, each in zip(system.models, ranked, strict=True)
            )
            entry = scoring.entry(
                system.name, ranked, data, options.protocol, selected_here=here
            )
            look, run = shown[data.name], system.models[0]
            outputs.add(entry, data, look, run=run, notes=system.notes)
        del encoder  # before the next one is there


def _options(config: Any) -> Options:
    """The config's fields, checked."""
    if config.fit not in images.FITS:
        raise UserError(f"fit '{config.fit}' is not one of {', '.join(images.FITS)}")
    rows = tuple(filter(None, (name.strip() for name in config.rows.split(","))))
    for name in rows:
        if name not in tables.KINDS:
            raise UserError(
                f"rows '{name}' is not one of {', '.join(tables.KINDS)}; several "
                "stand between commas"
            )
    for name in ("examples", "seed"):
        if config[name] < 0:
            raise UserError(f"{name}={config[name]} must be 0 or more")
    protocol = Protocol(
        without_match=config.without_match,
        bootstrap=config.bootstrap,
        seed=config.seed,
        **config.rerank,
    )
    return Options(
        batch_size=config.batch_size,
        threads=config.data.threads,
        protocol=protocol,
        examples=config.examples,
        seed=config.seed,
        rows=rows,
    )


def _choices(
    found: Sequence[systems.System],
    sets: Sequence[RetrievalSet],
    config: Any,
    options: Options,
) -> dict[str, str]:
    """What is evaluated and how, a line each."""
    protocol = options.protocol
    lines = {f"system {one.name}": ", ".join(one.models) for one in found}
    noted = {f"note on {one.name}": "; ".join(one.notes) for one in found}
    lines |= {name: text for name, text in noted.items() if text}
    for data in sets:
        persons = len(np.unique(data.person_ids))
        lines[f"set {data.name}"] = (
            f"{len(data.queries)} captions, {len(data.records)} images, {persons} "
            "persons; every caption is a query, a query's own image is gallery, too"
        )
    return lines | {
        "checkpoint": str(config.checkpoint),
        "without match": protocol.without_match,
        "intervals": f"{scoring.LEVEL:.0%}, {protocol.bootstrap} draws of persons"
        if protocol.bootstrap
        else "none",
        "re-ranking": protocol.reranking or "none",
    }


def _load(config: Any, model: str, kinds: Mapping[str, str], mesh: Any) -> Encoder:
    """Opens a model; size and fit are for CLIP weights, where there are any."""
    way = {}
    if kinds[model] == "clip" or "clip" not in kinds.values():
        size = tuple(config.size) if any(config.size) else None
        way = dict(size=size, fit=config.fit)
    return encoders.load(model, checkpoint=str(config.checkpoint), mesh=mesh, **way)


def _measure(
    encoder: Encoder, data: RetrievalSet, options: Options, *, look: bool = True
) -> tuple[Scored, Examples | None]:
    """Figures of one model on one set, and examples; the embeddings are dropped."""
    reading = dict(batch_size=options.batch_size, threads=options.threads)
    queries, gallery = embed_set(encoder, data, **reading)
    selected_on = encoder.selected_on
    scored, scores = scoring.score(
        encoder.name,
        selected_on,
        data,
        queries,
        gallery,
        options.protocol,
        mesh=encoder.mesh,
    )
    if not look:
        return scored, None
    some = dict(count=options.examples, seed=options.seed)
    ranked = scored.to_image
    return scored, find_examples(data, ranked, scores, queries, gallery, **some)


def _selected_here(model: str, scored: Scored, data: RetrievalSet) -> bool:
    """Whether a model's checkpoint was chosen by its figures on this very set."""
    folder = systems.selection_folder(model)
    same = folder is None or systems.same_folder(folder, data.folder)
    return same and scored.selected_on == data.split


class _Outputs:
    """What is written, by process 0 alone: what is known of an entry at once.

    So a damaged image in the last set, or a kill, costs no figure that was computed.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        options: Options,
        names: Sequence[str],
        sets: Sequence[str],
    ) -> None:
        self._workdir, self._options = epath.Path(workdir), options
        self._several = len(names) > 1
        self._alone = len(names) * len(sets) == 1
        self._results: dict[str, Any] = {}
        self._links: dict[str, str] = {}
        self._writes = jax.process_index() == 0
        if self._workdir.exists() and not self._workdir.is_dir():
            raise UserError(
                f"--workdir={workdir} is a file; give a folder, or a new name"
            )
        if self._writes:
            self._workdir.mkdir(parents=True, exist_ok=True)

    def add(
        self,
        entry: dict[str, Any],
        data: RetrievalSet,
        shown: Examples,
        *,
        run: str | os.PathLike,
        notes: Sequence[str] = (),
    ) -> None:
        """Writes an entry, with notes on its runs, and its page.

        run: whose curves are drawn, if any.
        """
        entry = entry | {"notes": list(notes)}
        name = f"{entry['system']} on {data.name}" if self._several else data.name
        file = "report.html"
        if not self._alone:
            plain = re.sub(r"[^\w.-]+", "-", f"{entry['system']}-{data.name}")
            file = f"report-{plain}.html"
            if file in self._links.values():
                file = f"report-{plain}-{len(self._links) + 1}.html"
        self._results[name], self._links[name] = entry, file
        if self._writes:
            metrics = report.read_metrics(run)
            html = evaluation_page.detail(entry, data, shown, metrics)
            rundir.write_text(self._workdir / file, html)
            rundir.write_json(self._workdir / "evaluation.json", self._results)

    def finish(self, begin: float) -> dict[str, Any]:
        """Writes and prints what concerns all of them. begin: when it all began."""
        if not self._writes:
            return self._results
        for name in self._options.rows:
            text = tables.FORMATS[name](self._results)
            rundir.write_text(self._workdir / tables.KINDS[name], text)
        if not self._alone:
            html = evaluation_page.overview(self._results, self._links)
            rundir.write_text(self._workdir / "report.html", html)
        print(tables.terminal(self._results))
        took = report.clock(time.monotonic() - begin)
        print(f"{took}; see {self._workdir}/report.html", flush=True)
        return self._results
