"""The trace of a run: just the steps asked for, whole, and kept when the run fails."""

import gzip
import json
import types

import jax
import pytest

from unipt_jax import profile
from unipt_jax.errors import UserError
from unipt_jax.profile import Profiler, window

PLACE = "profile/plugins/profile"


@pytest.fixture
def log():
    """Stands in for a report: log.said, log.paused."""
    log = types.SimpleNamespace(said=[], paused=[])
    log.say, log.pause = log.said.append, log.paused.append
    return log


def train(profiler, begin, steps, fails_at=None):
    """A loop whose steps a trace shows by name."""
    with profiler:
        for step in range(begin, steps):
            done = step + 1
            with jax.profiler.TraceAnnotation(f"update {done}"):
                if done == fails_at:
                    raise RuntimeError("lost")
            profiler.at(done)


def traced(folder, process=0):
    """The numbers of the updates that a trace shows."""
    text = gzip.decompress((folder / f"process_{process}.trace.json.gz").read_bytes())
    names = [event.get("name", "") for event in json.loads(text)["traceEvents"]]
    return [int(name.split()[1]) for name in names if name.startswith("update ")]


@pytest.mark.parametrize(("text", "updates"), [("0:1", [1]), ("2:5", [3, 4, 5])])
def test_a_trace_shows_the_steps_asked_for_and_no_other(tmp_path, log, text, updates):
    train(Profiler(window(text, 6), tmp_path, 0, log), 0, 6)
    (folder,) = (tmp_path / PLACE).iterdir()
    assert folder.name == f"steps_{updates[0]}_to_{updates[-1]}"
    assert traced(folder) == updates
    assert (folder / "process_0.xplane.pb").stat().st_size > 0
    (said,) = log.said
    assert f"steps {updates[0]} to {updates[-1]} in {tmp_path / 'profile'};" in said
    assert f"xprof --logdir {tmp_path / 'profile'}" in said and "perfetto" in said
    assert "\n" not in said


def test_the_window_of_a_resumed_run_counts_from_where_it_resumed(tmp_path, log):
    train(Profiler(window("1:3", 50), tmp_path, 40, log), 40, 50)
    assert traced(tmp_path / PLACE / "steps_42_to_43") == [42, 43]


def test_a_run_that_fails_inside_the_window_keeps_its_trace(tmp_path, log):
    with pytest.raises(RuntimeError, match="lost"):
        train(Profiler(window("1:5", 9), tmp_path, 0, log), 0, 9, fails_at=4)
    assert traced(tmp_path / PLACE / "steps_2_to_3") == [2, 3, 4]  # begun, not done
    # And it is over: another one can begin.
    train(Profiler(window("1:2", 9), tmp_path, 0, log), 0, 9)
    assert traced(tmp_path / PLACE / "steps_2_to_2") == [2]


def test_a_run_that_ends_inside_the_window_keeps_its_trace(tmp_path, log):
    train(Profiler(window("1:5", 9), tmp_path, 6, log), 6, 9)
    assert traced(tmp_path / PLACE / "steps_8_to_9") == [8, 9]


def test_a_run_that_ends_before_the_window_says_that_there_is_no_profile(tmp_path, log):
    train(Profiler(window("5:8", 9), tmp_path, 6, log), 6, 9)
    assert log.said == ["no profile: it begins after step 11, the run ended at 9"]
    assert list(tmp_path.iterdir()) == []


def test_without_a_window_nothing_is_traced_or_said(tmp_path, log):
    train(Profiler(window("", 9), tmp_path, 0, log), 0, 9)
    assert (log.said, log.paused, list(tmp_path.iterdir())) == ([], [], [])


def test_at_its_edges_alone_the_work_under_way_is_waited_for(tmp_path, log):
    waits = []
    with Profiler(window("1:3", 9), tmp_path, 0, log) as profiler:
        for done in range(1, 6):
            pending = types.SimpleNamespace(
                block_until_ready=lambda done=done: waits.append(done)
            )
            profiler.at(done, {"loss": pending})
    assert waits == [1, 3]


def test_the_time_to_write_a_trace_is_taken_out_of_the_speed(
    tmp_path, log, monkeypatch
):
    now = iter([10.0, 20.0])
    monkeypatch.setattr(
        profile, "time", types.SimpleNamespace(monotonic=lambda: next(now))
    )
    train(Profiler(window("1:3", 9), tmp_path, 0, log), 0, 9)
    assert log.paused == [10.0, 20.0]  # since the trace began to start, and to stop


def test_processes_write_side_by_side(tmp_path, log, monkeypatch):
    for process in (0, 1):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        train(Profiler(window("1:2", 9), tmp_path, 0, log), 0, 9)
    folder = tmp_path / PLACE / "steps_2_to_2"
    assert [traced(folder, process) for process in (0, 1)] == [[2], [2]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("10", "profile='10' is not START:STOP"),
        ("a:b", "profile='a:b' is not START:STOP"),
        ("-1:5", "is not START:STOP"),
        ("1:2:3", "is not START:STOP"),
        ("5:5", "profile=5:5 ends before it begins"),
        ("6:5", "profile=6:5 ends before it begins"),
        ("90:101", "profile=90:101 goes beyond the 100 steps of the run; .* 100 or"),
    ],
)
def test_what_is_no_window_of_the_run_is_refused(text, sentence):
    with pytest.raises(UserError, match=sentence):
        window(text, 100)
