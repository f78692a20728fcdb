import itertools
import json
import math
import resource
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recipes.training.run_log import LOG_NAME, RunLog, read_records

SEQUENCES, TOKENS = 16, 1234  # per step


@pytest.fixture(autouse=True, params=[-86_400, 0], ids=["back a day", "still"])
def a_clock_that_does_not_go_on(request, monkeypatch):
    # Readers take event files in the order of their names, which hold the second of their start.
    ticks = SimpleNamespace(time=itertools.count(1_700_000_000, request.param).__next__)
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time", ticks)


def train(
    directory: Path,
    first: int,
    last: int,
    *,
    resume_step: int = 0,
    loss: float = 5.0,
    every: int = 1,
) -> None:
    """Steps first..last, with an evaluation at each tenth step."""
    log = RunLog(directory, total_steps=100, resume_step=resume_step, config={"run": {"lr": 5e-4}})
    for step in range(first, last + 1):
        where = (step, step * SEQUENCES, step * TOKENS, 0.5 * step)
        if step % every == 0:
            log.log(
                *where,
                {"loss/train": loss, "optimizer/lr": 1e-4, "throughput/tokens_per_sec": 2468.0},
            )
        if step % 10 == 0:
            log.eval(*where, {"loss/eval": loss - 0.5, "accuracy/eval": 0.25})
    log.close()


def events(directory: Path) -> EventAccumulator:
    return EventAccumulator(
        str(directory / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
    ).Reload()


def curve(directory: Path, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events(directory).Scalars(tag)]


def test_a_record_per_logged_step_in_order(tmp_path):
    train(tmp_path, 1, 10)
    records, broken = read_records(tmp_path / "log.jsonl")
    assert broken == 0
    assert [record["step"] for record in records] == [*range(1, 11), 10]
    assert records[2] == {
        "step": 3,
        "sequences": 48,
        "tokens": 3702,
        "seconds": 1.5,
        "loss/train": 5.0,
        "optimizer/lr": 1e-4,
        "throughput/tokens_per_sec": 2468.0,
    }
    assert records[-1]["accuracy/eval"] == 0.25


def test_loss_and_throughput_come_first_and_nothing_is_there_twice(tmp_path):
    train(tmp_path, 1, 3)
    assert curve(tmp_path, "1 loss/train") == [(1, 5.0), (2, 5.0), (3, 5.0)]
    assert curve(tmp_path, "4 progress/tokens") == [(1, 1234), (2, 2468), (3, 3702)]
    assert sorted(events(tmp_path).Tags()["scalars"]) == [
        "1 loss/train",
        "2 throughput/tokens_per_sec",
        "4 progress/sequences",
        "4 progress/tokens",
        "5 optimizer/lr",
    ]
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("resume_step", [10, 13, 20])
@pytest.mark.parametrize("every", [1, 4])
def test_after_a_resume_no_x_has_two_values(tmp_path, resume_step, every):
    train(tmp_path, 1, 25, loss=5.0, every=every)
    train(tmp_path, resume_step + 1, 40, resume_step=resume_step, loss=4.0, every=every)

    records, _ = read_records(tmp_path / "log.jsonl")
    trained = [(r["step"], r["loss/train"]) for r in records if "loss/train" in r]
    expected = [(s, 5.0 if s <= resume_step else 4.0) for s in range(every, 41, every)]
    assert trained == expected
    evaluated = [(r["step"], r["loss/eval"]) for r in records if "loss/eval" in r]
    assert evaluated == [(s, 4.5 if s <= resume_step else 3.5) for s in (10, 20, 30, 40)]

    assert curve(tmp_path, "1 loss/train") == trained
    assert curve(tmp_path, "1 loss/eval") == evaluated
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_two_resumes_in_a_row(tmp_path):
    train(tmp_path, 1, 9, loss=5.0)
    train(tmp_path, 7, 8, resume_step=6, loss=4.0)
    train(tmp_path, 5, 6, resume_step=4, loss=3.0)
    expected = [5.0] * 4 + [3.0] * 2
    assert [r["loss/train"] for r in read_records(tmp_path / "log.jsonl")[0]] == expected
    assert [value for _, value in curve(tmp_path, "1 loss/train")] == expected


def test_a_start_from_zero_drops_everything(tmp_path):
    train(tmp_path, 1, 9, loss=5.0)
    train(tmp_path, 1, 3, loss=4.0)
    assert [r["loss/train"] for r in read_records(tmp_path / "log.jsonl")[0]] == [4.0] * 3
    assert curve(tmp_path, "1 loss/train") == [(1, 4.0), (2, 4.0), (3, 4.0)]


def test_curves_of_an_earlier_version_are_drawn_anew(tmp_path):
    train(tmp_path, 1, 6)
    for copies in ("by_sequences", "by_tokens"):
        (tmp_path / "tensorboard" / copies).mkdir()
    for old in (tmp_path / "tensorboard").glob("events*"):
        old.write_bytes(b"")
    train(tmp_path, 6, 9, resume_step=5, loss=4.0)
    assert [value for _, value in curve(tmp_path, "1 loss/train")] == [5.0] * 5 + [4.0] * 4
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_time_goes_on_where_an_earlier_start_ended(tmp_path):
    train(tmp_path, 1, 6)
    train(tmp_path, 6, 9, resume_step=5)
    times = [event.wall_time for event in events(tmp_path).Scalars("1 loss/train")]
    assert [late - early for early, late in itertools.pairwise(times)] == pytest.approx([0.5] * 8)


def test_layout_and_settings_are_written_once(tmp_path):
    train(tmp_path, 1, 9)
    train(tmp_path, 6, 9, resume_step=5)
    tensors = events(tmp_path)
    counts = Counter({tag: len(tensors.Tensors(tag)) for tag in tensors.Tags()["tensors"]})
    assert counts == {"custom_scalars__config__": 1, "config/text_summary": 1}
    assert b"0.0005" in tensors.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


def test_what_is_not_finite_is_null_in_valid_json(tmp_path):
    log = RunLog(tmp_path, total_steps=9)
    log.log(1, 16, 99, 0.5, {"loss/train": math.nan, "optimizer/grad_norm": -math.inf})
    log.close()

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    record = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=refuse)
    assert record["loss/train"] is None
    assert record["optimizer/grad_norm"] is None


def test_each_record_is_on_disk_before_the_next_step(tmp_path):
    log = RunLog(tmp_path, total_steps=9)
    for step in (1, 2):
        log.log(step, 16 * step, 99 * step, 0.5, {"loss/train": 5.0})
        assert len(read_records(tmp_path / "log.jsonl")[0]) == step
    log.close()


def test_a_torn_line_is_counted_said_and_dropped(tmp_path, capsys):
    train(tmp_path, 1, 5)
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    assert read_records(path)[1] == 1
    train(tmp_path, 6, 6, resume_step=5)
    assert "1 torn line(s) dropped" in capsys.readouterr().err
    records, broken = read_records(path)
    assert (broken, [r["step"] for r in records]) == (0, [1, 2, 3, 4, 6])


HUGE = b'{"step": 1%s, "sequences": 2, "tokens": 3, "seconds": 4.0}' % (b"0" * 400)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"7", b'{"step": 1}', b'{"step": "1"}', b"\xff\xfe", HUGE]
)
def test_what_is_no_record_is_counted(tmp_path, line):
    good = b'{"step": 1, "sequences": 2, "tokens": 3, "seconds": 4.0}'
    (tmp_path / "log.jsonl").write_bytes(good + b"\n" + line + b"\n" + good + b"\n")
    records, broken = read_records(tmp_path / "log.jsonl")
    assert (len(records), broken) == (2, 1)


def test_earlier_seconds_include_steps_that_run_again(tmp_path, capsys):
    train(tmp_path, 1, 8)
    capsys.readouterr()
    log = RunLog(tmp_path, total_steps=100, resume_step=3)
    log.close()
    assert log.earlier_seconds == 4.0
    assert "5 record(s) past step 3 dropped" in capsys.readouterr().out


def test_other_ranks_write_nothing(tmp_path, capsys):
    log = RunLog(tmp_path / "run", total_steps=9, rank=1)
    log.log(1, 16, 99, 0.5, {"loss/train": 5.0})
    log.eval(1, 16, 99, 0.5, {"loss/eval": 5.0})
    log.flush()
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""
    assert log.earlier_seconds == 0.0


def test_records_wait_for_space_on_a_full_disk(tmp_path, capsys):
    log = RunLog(tmp_path, total_steps=9)
    log.log(1, 8, 80, 1.0, {"loss/train": 1.0})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = (tmp_path / LOG_NAME).stat().st_size
    try:
        # Room for half a line.
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, before[1]))
        log.log(2, 16, 160, 2.0, {"loss/train": 0.9})
        log.log(3, 24, 240, 3.0, {"loss/train": 0.8})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "File too large; records wait in memory" in capsys.readouterr().out
    log.log(4, 32, 320, 4.0, {"loss/train": 0.7})
    log.close()
    records, broken = read_records(tmp_path / LOG_NAME)
    assert ([record["step"] for record in records], broken) == ([1, 2, 3, 4], 0)


def test_curves_that_meet_a_full_disk_do_not_end_the_run(tmp_path, capsys):
    log = RunLog(tmp_path, total_steps=9)
    log.log(1, 8, 80, 1.0, {"loss/train": 1.0})
    log.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
        log.log(2, 16, 160, 2.0, {"loss/train": 0.9})
        log.flush()  # waits for the threads that write, and hears of their end
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "made anew from log.jsonl when there is space" in capsys.readouterr().out
    log.log(3, 24, 240, 3.0, {"loss/train": 0.8})
    log.close()
    records, broken = read_records(tmp_path / LOG_NAME)
    assert ([record["step"] for record in records], broken) == ([1, 2, 3], 0)
    drawn = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("1 loss/train")
    assert [point.step for point in drawn] == [1, 2, 3]
