"""What a run says of its speed, by hand: rows, the progress line, the page."""

import json
import types

import pytest

from unipt_jax import page, report
from unipt_jax.report import Report, clock, read_metrics


@pytest.fixture
def watch(monkeypatch):
    """A clock that only the test moves: watch.now, in seconds."""
    watch = types.SimpleNamespace(now=1000.0)
    stand_in = types.SimpleNamespace(monotonic=lambda: watch.now)
    monkeypatch.setattr(report, "time", stand_in)
    return watch


def speed(workdir, name="images_per_second"):
    return [row.get(name) for row in read_metrics(workdir)]


def test_the_speed_of_a_row_is_that_since_the_row_before(tmp_path, watch):
    run = Report(tmp_path, start=0, total=100, batch_size=32)
    watch.now += 60  # compilation
    run.started(1)
    watch.now += 2
    run.write(5, {})  # 4 steps x 32 images in 2 s
    watch.now += 3
    run.write(6, {})  # 1 step in 3 s
    watch.now += 1
    run.write(6, {"val_rank1": 1.0}, speed=False)  # between the reports: no speed
    watch.now += 1
    run.write(10, {})  # 4 steps in 2 s
    run.close()
    assert speed(tmp_path) == [64.0, round(32 / 3, 2), None, 64.0]
    assert speed(tmp_path, "step_seconds") == [0.5, 3.0, None, 0.5]


def test_flops_are_those_counted_since_the_row_before_and_mfu_is_of_the_peak(
    tmp_path, watch
):
    run = Report(tmp_path, start=0, total=100, batch_size=32, peak=40e12)
    run.count(9e15)  # of the step that was compiled
    watch.now += 60
    run.started(1)
    run.count(6e12)
    run.count(14e12)
    watch.now += 2
    run.write(3, {})  # 20e12 in 2 s
    run.count(8e12)
    watch.now += 1
    run.write(4, {})
    run.close()
    assert speed(tmp_path, "tflops_per_second") == [10.0, 8.0]
    assert speed(tmp_path, "mfu") == [25.0, 20.0]


def test_where_no_peak_is_known_there_is_no_mfu(tmp_path, watch):
    run = Report(tmp_path, start=0, total=100, batch_size=32)
    run.count(6e12)
    watch.now += 2
    run.write(1, {})
    run.close()
    assert speed(tmp_path, "tflops_per_second") == [3.0]
    assert speed(tmp_path, "mfu") == [None]


def test_input_wait_is_the_share_of_the_time_in_which_the_loop_waited(tmp_path, watch):
    run = Report(tmp_path, start=0, total=100, batch_size=32)

    def step(wait, work):
        with run.waiting():
            watch.now += wait
        watch.now += work

    step(50, 10)  # the pipeline starts
    run.started(1)
    step(0.5, 1.5)
    step(0.0, 2.0)
    run.write(3, {})  # 0.5 of 4 s
    step(1.0, 1.0)
    begin = watch.now
    watch.now += 100  # an evaluation
    run.pause(begin)
    run.write(4, {})  # 1 of 2 s
    run.close()
    assert speed(tmp_path, "input_wait") == [12.5, 50.0]


def test_an_evaluation_does_not_count_as_training_time(tmp_path, watch):
    run = Report(tmp_path, start=20, total=100, batch_size=10)
    run.started(20)
    watch.now += 4
    begin = watch.now
    watch.now += 1000
    run.pause(begin)
    watch.now += 1
    run.write(30, {})  # 10 steps x 10 images in 4 + 1 s
    run.close()
    assert speed(tmp_path) == [20.0]


def test_a_row_at_the_first_step_has_no_speed(tmp_path, watch):
    run = Report(tmp_path, start=0, total=100, batch_size=10)
    run.count(1e12)
    watch.now += 60
    run.started(1)
    run.write(1, {"loss": 1.0})
    run.close()
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 1.0}]


def test_all_that_a_clock_decides_is_named_as_speed_and_drawn_as_no_loss(
    tmp_path, watch
):
    def row(seconds):
        run = Report(tmp_path, start=0, total=9, batch_size=10, peak=1e12)
        run.count(1e9)
        with run.waiting():
            watch.now += seconds
        run.write(1, {"loss": 1.0, "lr": 0.5})
        run.close()
        return read_metrics(tmp_path)[0]

    one, other = row(1), row(3)
    assert tuple(k for k in one if k not in ("step", "loss", "lr")) == report.SPEED
    without = {k: v for k, v in one.items() if k not in report.SPEED}
    assert without == {"step": 1, "loss": 1.0, "lr": 0.5}
    assert one["images_per_second"] == 10.0 != other["images_per_second"]
    assert set(report.SPEED) <= set(page.NO_LOSSES)


def test_a_resumed_run_keeps_rows_from_before_there_was_a_step_time(tmp_path, watch):
    old = {"step": 2, "loss": 1.0, "images_per_second": 20.0}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(old) + "\n")
    run = Report(tmp_path, start=2, total=9, batch_size=10)
    watch.now += 1
    run.write(3, {"loss": 0.5})
    run.close()
    rows = read_metrics(tmp_path)
    assert rows[0] == old and rows[1]["step_seconds"] == 1.0
    assert page.speed(rows).startswith("15 images a second, ")  # between 20 and 10


def test_a_page_says_the_median_speed_in_one_line():
    rows = [
        {"step": 1, "loss": 1.0},
        {"step": 2, "images_per_second": 1000.0, "mfu": 40.0, "input_wait": 0.0},
        {"step": 2, "val_rank1": 1.0},
        {"step": 3, "images_per_second": 3210.0, "mfu": 45.25, "input_wait": 2.0},
        {"step": 4, "images_per_second": 9999.0, "mfu": 50.0, "input_wait": 4.0},
    ]
    text = page.speed(rows)
    assert text == (
        "3,210 images a second, 45.2% of the devices' peak, "
        "2% of the time waiting for input"
    )
    assert f"<!-- {text.partition(',')[0]}" in page.curves(rows)
    assert page.speed(rows[:1]) == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0:00"),
        (9.99, "0:09"),
        (65, "1:05"),
        (599, "9:59"),
        (3599.9, "59:59"),
        (3600, "1:00:00"),
        (3725, "1:02:05"),
        (90_061, "25:01:01"),
        (-5, "0:00"),
    ],
)
def test_clock(seconds, shown):
    assert clock(seconds) == shown


def test_the_progress_line_says_the_step_the_numbers_and_the_time_left(
    tmp_path, watch, capsys
):
    run = Report(tmp_path, start=10, total=40, batch_size=8)
    run.started(10)
    watch.now += 50
    run.write(20, {"loss": 1.23456})
    run.say("saved")
    run.close()
    progress, said = capsys.readouterr().err.splitlines()
    assert progress.split() == (
        # 8 x 10 images in 50 s; 20 steps left at 5 s each
        ["step", "20/40", "loss", "1.235", "img/s", "2", "wait", "0%", "1:40", "left"]
    )
    assert said == "saved"


PRETRAINING = {
    "loss": 5.91234,
    "contrastive": 5.30123,
    "mlm": 0.61111,
    "lr": 9.8764e-06,
    "gradient_norm": 1.23456,
    "temperature": 0.07012,
    "images_per_second": 3210.4,
    "step_seconds": 0.159,
    "tflops_per_second": 447.3,
    "mfu": 45.21,
    "input_wait": 1.2,
}


def test_the_progress_line_has_room_for_what_matters_in_100_columns():
    line = report.progress("12000/45000", PRETRAINING, "3:41:05 left", 100)
    assert line == (
        "step 12000/45000  loss 5.912 contrastive 5.301 mlm 0.6111 img/s 3,210 "
        "mfu 45.2%  3:41:05 left"
    )
    assert len(line) <= 100
    wide = report.progress("12000/45000", PRETRAINING, "3:41:05 left", 200)
    assert wide == (
        "step 12000/45000  loss 5.912 contrastive 5.301 mlm 0.6111 lr 9.876e-06 "
        "grad 1.235 temperature 0.07012 img/s 3,210 TFLOP/s 447.3 mfu 45.2% wait 1%"
        "  3:41:05 left"
    )
