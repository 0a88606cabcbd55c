from fedctl.records import Progress, TaskKey
from fedctl.sinks import LONGEST_LINE, MetricsSink
from fedctl.telemetry import load

KEY = TaskKey(round=1, node="alice")


def test_samples_are_appended_also_by_a_second_coordinator(tmp_path):
    for step in (1, 2):
        with MetricsSink(tmp_path / "metrics.jsonl") as sink:
            sink.progress(Progress(key=KEY, phase="training", step=step))
    assert [load(line).step for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()] == [1, 2]


def test_the_file_stays_bounded_and_has_the_newest(tmp_path):
    with MetricsSink(tmp_path / "metrics.jsonl", most_bytes=4096) as sink:
        for step in range(500):
            sink.progress(Progress(key=KEY, phase="training", step=step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "metrics.jsonl.old"]
    assert all(path.stat().st_size <= 4096 for path in tmp_path.iterdir())
    assert load((tmp_path / "metrics.jsonl").read_bytes().splitlines()[-1]).step == 499


def test_a_sample_of_absurd_length_is_not_kept(tmp_path):
    with MetricsSink(tmp_path / "metrics.jsonl") as sink:
        sink.progress(Progress(key=KEY, phase="training", metrics={"m" * LONGEST_LINE: 1.0}))
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""
