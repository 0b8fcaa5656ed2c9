"""The shards of a set as an Apache Beam pipeline: for more than one machine.

Workers must see the folders of --raw and --out under the same paths, and have
`unipt_jax` installed. The files are the same, to the byte, as without Beam.
"""

import concurrent.futures
import contextlib
import io
import logging
import shlex
import threading
from collections.abc import Callable, Iterator

from data_prep.prepare import Task, result, write_shard
from unipt_jax.errors import UserError, explain_os_error

try:
    logging.disable(logging.WARNING)  # it tells of Google's clouds, one uses or not
    import apache_beam
    from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
    from apache_beam.runners import create_runner
except ImportError as error:
    raise UserError(
        f"--beam needs Apache Beam ({error}); install it with pip install '.[beam]'"
    ) from error
finally:
    logging.disable(logging.NOTSET)

POLL = 2.0  # seconds between looks at what is written
QUIET = "--default_sdk_harness_log_level"


def runner(options: str) -> Callable[[list[Task]], Iterator]:
    """What does tasks on Beam. options: Beam's own, as `--runner=DirectRunner ...`.

    Raises UserError for options that are none.
    """
    try:
        words = shlex.split(options)
    except ValueError as error:
        raise UserError(f"--beam '{options}': {error}; correct the quotes") from error
    if stray := [word for word in words if not word.startswith("--")]:
        raise UserError(
            f"--beam '{options}': '{stray[0]}' is no option; give Beam's own as "
            '--beam "--runner=DirectRunner --direct_num_workers=2"'
        )
    if not any(word.startswith(QUIET) for word in words):
        words.append(f"{QUIET}=ERROR")
    _check(words, options)

    def run(tasks: list[Task]) -> Iterator:
        """Results in the order of the tasks, each when it is there."""
        pipeline: concurrent.futures.Future = concurrent.futures.Future()

        def work() -> None:
            try:
                with apache_beam.Pipeline(options=PipelineOptions(words)) as steps:
                    shards = steps | "shards" >> apache_beam.Create(tasks)
                    shards = shards | "spread" >> apache_beam.Reshuffle()
                    _ = shards | "write" >> apache_beam.Map(_write)
            except BaseException as error:  # noqa: BLE001  raised where it is waited for
                pipeline.set_exception(error)
            else:
                pipeline.set_result(None)

        if not tasks:
            return
        # A daemon: who stops the build does not wait for the pipeline.
        threading.Thread(target=work, daemon=True).start()
        for task in tasks:
            while not pipeline.done() and result(task) is None:
                concurrent.futures.wait([pipeline], POLL)
            bad = result(task)
            if bad is None:
                if error := pipeline.exception():
                    raise _failure(error, options)
                bad = write_shard(task)  # tells what stopped it, if it still does
            yield bad
        if error := pipeline.exception():
            raise _failure(error, options)

    return run


def _check(words: list[str], options: str) -> None:
    """Has Beam read its options, which ends the program where it cannot."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            beams = PipelineOptions(words)
            beams.get_all_options()
            create_runner(beams.view_as(StandardOptions).runner or "DirectRunner")
    except SystemExit as error:
        why = said.getvalue().strip().splitlines()[-1].rpartition("error: ")[2]
        raise UserError(f"--beam '{options}': {why}; correct it") from error
    except ValueError as error:
        raise UserError(f"--beam '{options}': {str(error)[:300]}") from error


def _write(task: Task) -> None:
    """Writes a shard, or nothing where that is for the user to mend: Beam would tell of
    it in tracebacks, `run` does in a sentence."""
    try:
        write_shard(task)
    except UserError:
        pass
    except OSError as error:
        if explain_os_error(error) is None:
            raise


def _failure(error: BaseException, options: str) -> UserError:
    said = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return UserError(
        f"the Beam pipeline ({options}) failed: {said[:600]}; the same command goes on "
        "with what is left"
    )
