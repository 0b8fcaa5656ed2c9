"""A run's numbers: rows kept and dropped, kills, one writer."""

import json
import os
import pathlib
import struct
import subprocess
import sys

import jax
import numpy as np

from unipt_jax import report
from unipt_jax.report import Report, read_metrics

ROOT = pathlib.Path(__file__).parents[1]


def lines(workdir):
    return (workdir / "metrics.jsonl").read_text().splitlines()


def steps(workdir):
    return [json.loads(line)["step"] for line in lines(workdir)]


def filled(workdir, count=6):
    """The metrics of a run that was cut off in its last line."""
    rows = [{"step": i, "loss": 1 / i} for i in range(1, count + 1)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(text + '{"step": 7, "lo')
    return rows


# --- rows ----------------------------------------------------------------------------


def test_each_write_is_a_line_at_once_with_its_step_and_exact_numbers(tmp_path):
    run = Report(tmp_path, start=0, total=10, batch_size=4)
    third = np.float32(1 / 3)
    run.write(1, {"loss": third, "lr": 1e-5}, speed=False)
    assert lines(tmp_path) == [
        json.dumps({"step": 1, "loss": float(third), "lr": 1e-5})
    ]
    run.write(2, {"rank1": jax.numpy.float32(50.0)}, speed=False)
    assert read_metrics(tmp_path) == [
        {"step": 1, "loss": float(third), "lr": 1e-5},
        {"step": 2, "rank1": 50.0},
    ]
    run.close()
    assert len(lines(tmp_path)) == 2


def test_a_run_without_metrics_has_no_rows(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_resumed_run_drops_what_came_after_its_checkpoint_and_the_cut_line(tmp_path):
    rows = filled(tmp_path)
    run = Report(tmp_path, start=4, total=10, batch_size=4)
    assert read_metrics(tmp_path) == rows[:4]
    run.write(5, {"loss": 0.5}, speed=False)
    run.close()
    assert read_metrics(tmp_path) == [*rows[:4], {"step": 5, "loss": 0.5}]
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


def test_several_rows_of_the_step_resumed_from_all_stay(tmp_path):
    rows = [
        {"step": 2, "loss": 1.0},
        {"step": 4, "loss": 0.5},
        {"step": 4, "val_rank1": 30.0},
        {"step": 6, "loss": 0.4},
    ]
    file = tmp_path / "metrics.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    Report(tmp_path, start=4, total=10, batch_size=4).close()
    assert read_metrics(tmp_path) == rows[:3]


def test_a_run_that_starts_anew_drops_all_rows(tmp_path):
    filled(tmp_path)
    Report(tmp_path, start=0, total=10, batch_size=4).close()
    assert lines(tmp_path) == []


def test_reading_leaves_out_the_line_that_was_cut(tmp_path):
    assert read_metrics(tmp_path) == []
    rows = filled(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    assert read_metrics(tmp_path) == rows
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_half_a_rewrite_that_a_kill_left_is_not_taken_for_metrics(tmp_path):
    rows = filled(tmp_path)
    (tmp_path / "metrics.jsonl.partial").write_text('{"step": 1}\n{"st')
    assert read_metrics(tmp_path) == rows
    Report(tmp_path, start=6, total=10, batch_size=4).close()
    assert read_metrics(tmp_path) == rows
    assert not (tmp_path / "metrics.jsonl.partial").exists()


def test_where_a_store_cannot_append_all_rows_are_written_at_each_save(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(Report, "_appends", False)
    rows = filled(tmp_path)
    run = Report(tmp_path, start=3, total=10, batch_size=4)
    run.write(4, {"loss": 0.5}, speed=False)
    assert read_metrics(tmp_path) == rows[:3]
    run.flush()
    assert read_metrics(tmp_path) == [*rows[:3], {"step": 4, "loss": 0.5}]
    run.write(5, {"loss": 0.25}, speed=False)
    run.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5]


# Resumes at step 3 in forked processes, each killed before its n-th touch of a file of
# metrics, for n = 0, 1, ... until one gets through; says what each leaves to be read.
KILLER = """
import json, os, pathlib, signal, sys
from unipt_jax import report

root = pathlib.Path(sys.argv[1])
before = (root / "metrics.jsonl").read_bytes()

def resume(folder, nth):
    seen = 0
    def hook(event, arguments):
        nonlocal seen
        if event in ("open", "os.rename") and "metrics.jsonl" in str(arguments[0]):
            if event == "open" and "r" in str(arguments[1]):
                return
            if seen == nth:
                os.kill(os.getpid(), signal.SIGKILL)
            seen += 1
    sys.addaudithook(hook)
    run = report.Report(folder, start=3, total=9, batch_size=4)
    for step in (4, 5):
        run.write(step, {"loss": 1 / step}, speed=False)
    run.close()

for nth in range(50):
    folder = root / str(nth)
    folder.mkdir()
    (folder / "metrics.jsonl").write_bytes(before)
    pid = os.fork()
    if pid == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        resume(folder, nth)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([code, report.read_metrics(folder)]))
    if code == 0:
        break
"""


def test_a_kill_at_any_moment_leaves_a_file_that_holds_all_rows_saved_so_far(tmp_path):
    rows = filled(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", KILLER, tmp_path],
        cwd=ROOT,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    *killed, last = [json.loads(line) for line in done.stdout.splitlines()]
    new = [{"step": step, "loss": 1 / step} for step in (4, 5)]
    assert last == [0, [*rows[:3], *new]]
    assert (
        killed
        == [
            [-9, rows],  # before the new file is opened
            [-9, rows],  # before it takes the old one's place
            [-9, rows[:3]],  # before the first row
            [-9, [*rows[:3], new[0]]],  # before the second
        ]
    )


def test_every_row_is_json_also_where_a_loss_is_not_a_number(tmp_path):
    run = Report(tmp_path, start=0, total=10, batch_size=4)
    run.write(1, {"loss": float("nan"), "mlm": float("inf")}, speed=False)
    run.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    (line,) = lines(tmp_path)
    json.loads(line, parse_constant=refuse)


# --- events --------------------------------------------------------------------------


def scalars(workdir):
    """(step, name) -> value of all event files, read by the format's own rules."""
    from tensorboardX.proto.event_pb2 import Event

    found = {}
    for file in sorted((workdir / "events").iterdir()):
        data = file.read_bytes()
        while data:  # length, its checksum, the event, its checksum
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]
            for value in event.summary.value:
                found[event.step, value.tag] = value.simple_value
    return found


def test_tensorboard_gets_every_number_of_the_rows(tmp_path):
    run = Report(tmp_path, start=0, total=10, batch_size=4)
    run.write(1, {"loss": 0.5, "lr": 0.25}, speed=False)
    run.write(3, {"loss": 0.125}, speed=False)
    run.close()
    assert scalars(tmp_path) == {
        (1, "loss"): 0.5,
        (1, "lr"): 0.25,
        (3, "loss"): 0.125,
    }


# --- one writer ----------------------------------------------------------------------


def test_other_processes_write_and_print_nothing(tmp_path, monkeypatch, capsys):
    rows = filled(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    run = Report(tmp_path, start=3, total=10, batch_size=4)
    run.started(3)
    run.write(4, {"loss": 1.0})
    run.say("saved")
    run.flush()
    run.close()
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    assert capsys.readouterr() == ("", "")
    assert read_metrics(tmp_path) == rows


def test_the_parameter_table_sums_by_the_two_upper_names(capsys):
    params = {
        "image": {"block_0": {"fc": {"kernel": np.zeros((3, 4)), "bias": np.zeros(4)}}},
        "text": {"embedding": np.zeros((100, 20)), "norm": {"scale": np.zeros(())}},
    }
    report.parameter_table(params)
    shown = dict(line.split() for line in capsys.readouterr().out.splitlines()[1:])
    assert shown == {
        "image/block_0": "16",
        "text/embedding": "2,000",
        "text/norm": "1",
        "total": "2,017",
    }
