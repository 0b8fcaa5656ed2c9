"""Train state in, train state out; parameters alone for those who only use them.

A checkpoint is `<folder>/<step>/` with the items `params`, `rest` (step, moments) and
`metrics`. Orbax writes beside it and renames: a killed save leaves no checkpoint.
"""

import os
import shutil
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers

from unipt_jax import tree
from unipt_jax.errors import UserError
from unipt_jax.optim import TrainState

FULL = (
    "{folder}: the disk is full, the checkpoint was not written; the one before it is "
    "whole. Free some space and run the same command again"
)


class Checkpoints:
    """The checkpoints of one run: the last `keep`, and the best one by `metric`.

    read_only: for all but the run itself. What the run finds half written is of a save
    that was killed, and is removed; what others find may be a save in progress.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        keep: int = 1,
        metric: str = "rank1",
        read_only: bool = False,
    ):
        def value(metrics: Mapping[str, float]) -> float:
            return metrics[metric]

        self._folder = epath.Path(folder)
        self._metric = metric
        policies = checkpoint_managers
        self._manager = ocp.CheckpointManager(
            self._folder.resolve(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        policies.LatestN(keep),
                        policies.BestN(
                            get_metric_fn=value,
                            n=1,
                            keep_checkpoints_without_metrics=False,
                        ),
                    ]
                ),
                best_fn=value,
                # orbax's own read_only does these two, and warns of each folder
                create=not read_only,
                cleanup_tmp_directories=not read_only,
                enable_async_checkpointing=True,
            ),
            item_handlers={
                "params": ocp.StandardCheckpointHandler(),
                "rest": ocp.StandardCheckpointHandler(),
            },
        )

    def latest(self) -> int | None:
        """The last complete checkpoint's step, or None."""
        return self._manager.latest_step()

    def scored(self) -> list[int]:
        """The steps whose checkpoints have metrics."""
        return [s for s in self._manager.all_steps() if self._manager.metrics(s)]

    def best(self) -> int | None:
        """The step with the best metric, else the last; None without checkpoints."""
        scored = self.scored()
        if not scored:
            return self.latest()
        return max(scored, key=lambda s: self._manager.metrics(s)[self._metric])

    def save(
        self, state: TrainState, step: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Begins to save in the background. Twice the same step is done once.

        Raises UserError where the disk is full, from this save or the one before.
        """
        if self._manager.latest_step() == step:
            return
        self._check_space(state)
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(_rest(state)),
        )
        with _explained(self._folder):
            self._manager.save(step, args=items, metrics=metrics, force=True)

    def _check_space(self, state: TrainState) -> None:
        """Refuses to begin a save that cannot end: nothing is half written then."""
        if "://" in str(self._folder):
            return  # a store without a size
        needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
        if shutil.disk_usage(self._folder).free < needed:
            raise UserError(FULL.format(folder=self._folder))

    def restore(self, state: TrainState, step: int) -> TrainState:
        """Reads a checkpoint into the shapes and placements of `state`.

        state: arrays, or `jax.ShapeDtypeStruct`s with shardings. Raises UserError where
        the checkpoint has other parameters or shapes.
        """
        self._check_shapes(state.params, step)
        items = ocp.args.Composite(
            params=ocp.args.StandardRestore(_abstract(state.params)),
            rest=ocp.args.StandardRestore(_abstract(_rest(state))),
        )
        found = self._manager.restore(step, args=items)
        return state.replace(params=found["params"], **found["rest"])

    def restore_params(self, params: Any, step: int) -> Any:
        """Reads the parameters alone, into the shapes and placements of `params`."""
        self._check_shapes(params, step)
        items = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(params)))
        return self._manager.restore(step, args=items)["params"]

    def _check_shapes(self, params: Any, step: int) -> None:
        stored = tree.flatten(self._manager.item_metadata(step)["params"].tree)
        found = {path: tuple(leaf.shape) for path, leaf in stored.items()}
        wanted = {p: tuple(leaf.shape) for p, leaf in tree.flatten(params).items()}
        differ = sorted(
            path
            for path in found.keys() | wanted.keys()
            if found.get(path) != wanted.get(path)
        )
        if differ:
            path = differ[0]
            raise UserError(
                f"checkpoint {self._folder}/{step} is of another model: {path} has "
                f"shape {found.get(path, 'none')} there, {wanted.get(path, 'none')} "
                f"here ({len(differ)} such parameters); use the config it was made "
                "with, or another --workdir"
            )

    def wait(self) -> None:
        """Returns when all begun saves are on disk. Raises as `save` does."""
        with _explained(self._folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and lets go of the folder."""
        self.wait()
        self._manager.close()


def _rest(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "mean": state.mean,
        "square": state.square,
        "bad_step": state.bad_step,
    }


def _abstract(values: Any) -> Any:
    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)

    return jax.tree.map(describe, values)


class _explained:
    """Turns a full disk, as the store's library reports it, into one sentence."""

    def __init__(self, folder: epath.Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        text = f"{error} {error.__cause__}" if error else ""
        if "No space left" in text or "RESOURCE_EXHAUSTED: Error writing" in text:
            raise UserError(FULL.format(folder=self._folder)) from error
