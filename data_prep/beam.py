"""The shards of a set as an Apache Beam pipeline: for more than one machine.

Workers must see the folders of --raw and --out under the same paths, and have
`unipt_jax` installed. The files are the same, to the byte, as without Beam.
"""

import concurrent.futures
import shlex
from collections.abc import Callable, Iterator

from data_prep.prepare import Task, result, write_shard
from unipt_jax.errors import UserError

try:
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as error:
    raise UserError(
        f"--beam needs Apache Beam ({error}); install it with pip install '.[beam]'"
    ) from error

POLL = 2.0  # seconds between looks at what is written


def runner(options: str) -> Callable[[list[Task]], Iterator]:
    """What does tasks on Beam. options: Beam's own, as `--runner=DirectRunner ...`.

    Raises UserError for options that are none.
    """
    words = shlex.split(options)
    if stray := [word for word in words if not word.startswith("--")]:
        raise UserError(
            f"--beam '{options}': '{stray[0]}' is no option; give Beam's own as "
            '--beam "--runner=DirectRunner --direct_num_workers=2"'
        )

    def run(tasks: list[Task]) -> Iterator:
        """Results in the order of the tasks, each when it is there."""

        def work() -> None:
            with apache_beam.Pipeline(options=PipelineOptions(words)) as pipeline:
                shards = pipeline | "shards" >> apache_beam.Create(tasks)
                shards = shards | "spread" >> apache_beam.Reshuffle()
                _ = shards | "write" >> apache_beam.Map(write_shard)

        if not tasks:
            return
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pipeline = pool.submit(work)
            for task in tasks:
                while not pipeline.done() and result(task) is None:
                    concurrent.futures.wait([pipeline], POLL)
                bad = result(task)
                if bad is None:
                    raise _failure(pipeline.exception(), options)
                yield bad
            if error := pipeline.exception():
                raise _failure(error, options)

    return run


def _failure(error: BaseException | None, options: str) -> UserError:
    said = str(error).strip().splitlines()[-1] if str(error or "") else "it ended early"
    return UserError(
        f"the Beam pipeline ({options}) failed: {said[:300]}; the same command goes on "
        "with what is left"
    )
