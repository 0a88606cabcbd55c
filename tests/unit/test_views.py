import dataclasses
import functools
import io
import json
import math
import re
import time
from datetime import timedelta

import pytest
from rich.console import Console

from fedctl.errors import ConfigError
from fedctl.eventlines import EVENTS
from fedctl.events import (
    UNNEEDED,
    MessageReceived,
    NodeDeclined,
    RoundAbandoned,
    RoundHeld,
    RoundOpened,
    RoundWidened,
    RunFailed,
    RunFinished,
    StepClosed,
    UpdateLost,
)
from fedctl.forecast import Forecast, LineForecast
from fedctl.records import Blob, Progress, TaskKey
from fedctl.report import report
from fedctl.secure import STEPS
from fedctl.state import RunState, apply
from fedctl.telemetry import Preparing
from fedctl.traffic import Traffic
from fedctl.views import open_sink, results, show
from fedctl.views.canvas import Drawing, bar, plot
from fedctl.views.closing import closing_lines
from fedctl.views.dashboard import dashboard
from fedctl.views.forecasting import forecast_pairs
from fedctl.views.lines import LinesSink
from fedctl.views.live import LiveSink
from fedctl.views.personal import personal_lines
from fedctl.views.sentence import is_routine, sentence
from fedctl.views.standing import status_lines
from fedctl.views.text import change, clock, duration, figure, of_raw, plain, roughly, size
from fedctl.views.verdict import personal_verdict, verdict
from tests.unit.runs import NAMES, Story, blob, finished, mid_round, preparing

SITES = tuple(f"site-{number:02d}" for number in range(50))
MOMENTS = {
    "preparing": preparing,
    "mid-round": mid_round,
    "finished": finished,
    "fine-tuned": functools.partial(finished, personal=True, finetune=True),
}
HOSTILE = "\x1b[2J\x1b]0;owned\x07[bold red]boom[/]\x9b31m\r\n\u202etxt\x00 \ud800"


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@functools.cache
def told_once(moment, names):
    return MOMENTS[moment](*names)


def drawn(story, width=80, height=None, *, alive=True, file=None, **console):
    file = file or io.StringIO()
    options = {"legacy_windows": False, "no_color": True, **console}
    recent = [event for event in story.events if not is_routine(event)][-8:]
    now = story.now + timedelta(seconds=2)
    picture = dashboard(story.state, story.progress, recent, now, alive=alive, height=height)
    Console(file=file, width=width, **options).print(picture)
    return file.getvalue() if isinstance(file, io.StringIO) else ""


def test_a_round_under_way_at_80_columns():
    assert drawn(mid_round(), 80, 24).splitlines()[:16] == [
        "digits  digits-20261122-023000                                         ● running",
        "round 4 of 10  ━━━━━━━━━━━━━━──────────────────────────────  56s · about 1m left",
        "",
        "  node   state       progress              loss  val_acc    time  ↓ sent  ↑ recv",
        "✓ alice  done        ━━━━━━━━━━━━━        0.240   0.8169     11s  9.9 MB  5.0 MB",
        "✗ bob    failed      attempt 1: CUDA out of memory",
        "⠏ carol  training    ━━━━━━━━─────  62%   0.412   0.7969      5s  8.7 MB  3.7 MB",
        "⠏ dave   training    ━━━━━────────  40%   0.412   0.7869      5s  8.7 MB  3.7 MB",
        "○ erin   waiting                          0.300   0.7769          8.7 MB  3.7 MB",
        "",
        "val_acc, rounds 0 to 10",
        "0.7941 ┤               ████",
        "       │          ████ ████",
        "       │     ▂▂▂▂ ████ ████",
        "       │     ████ ████ ████",
        "       │     ████ ████ ████",
    ]


def test_nodes_being_made_ready_at_60_columns():
    assert drawn(preparing(), 60, 24).splitlines() == [
        "digits  digits-20261122-023000                   ● preparing",
        "0 of 10 rounds  ────────────────────────────────────────  3s",
        "",
        "  node   state       progress          loss  val_acc    time",
        "○ alice  waiting",
        "✗ bob    lost        permission denied (publickey) for fed@…",
        "⠴ carol  preparing",
        "⠴ dave   preparing",
        "",
        "02:30:00  run digits-20261122-023000 started: 4 nodes, 10 r…",
        "02:30:00  alice is ready",
        "02:30:01  bob is lost: permission denied (publickey) for fe…",
    ]


def test_a_finished_run_shows_what_federating_bought_at_120_columns():
    lines = drawn(finished(), 120, 40).splitlines()
    assert lines[-8:] == [
        "node      alone  federated      gain       alone  federated      gain",
        "alice    0.5767     0.9400   +0.3633      0.9700     0.9500   -0.0200",
        "bob      0.5567     0.9400   +0.3833      0.9500     0.9400   -0.0100",
        "carol    0.5367     0.9400   +0.4033      0.9300     0.9300         0",
        "",
        "federating bought +0.3833 val_acc on everyone's data",
        "worst node alone: carol 0.5367 → 0.9400",
        "better alone on its own data: alice, bob",
    ]
    assert lines[0].endswith("✓ finished")


def test_while_a_run_goes_on_each_nodes_own_score_stands_beside_the_global_one():
    assert drawn(mid_round(personal=True), 80, 24).splitlines()[3:10] == [
        "  node   state       progress                    loss  val_acc  personal    time",
        "✓ alice  done        ━━━━━━━━━━━━━━━━━━━        0.240   0.8169    0.8519     11s",
        "✗ bob    failed      attempt 1: CUDA out of memory",
        "⠏ carol  training    ━━━━━━━━━━━━───────  62%   0.412   0.7969    0.8119      5s",
        "⠏ dave   training    ━━━━━━━╸───────────  40%   0.412   0.7869    0.7919      5s",
        "○ erin   waiting                                0.300   0.7769    0.7719",
        "personal: val_acc 0.8062 (global 0.7941), worst erin 0.7719 (0.7769)",
    ]
    assert "personal" not in drawn(mid_round())
    narrow = drawn(mid_round(personal=True), 40)
    assert "worst erin 0.7719 (0.7769)" in " ".join(narrow.split())
    assert max(map(len, narrow.splitlines())) <= 40


def test_the_worst_node_of_the_global_model_is_named_where_it_is_another():
    story = mid_round("alice", "bob", "carol", "dave", personal=True)
    for name, value, own in (("alice", 0.5, 0.9), ("bob", 0.9, 0.6)):
        story.evaluated(4, name, value, personal=own)
    story.state = dataclasses.replace(story.state, round=5)
    told = "personal: val_acc 0.7500 (global 0.7000) on 2 of 4 nodes, worst bob 0.6000 (alice 0.5000)"
    assert f"\n{told}\n" in drawn(story, 100)


def test_a_finished_run_shows_personal_models_beside_the_global_one():
    story = finished(*NAMES, compare=False, personal=True)
    lines = drawn(story, 80, 50).splitlines()
    assert lines[-11:] == [
        "personal models kept after round 10, on each node's own data",
        "node     global  personal      gain",
        "alice    0.9578    0.9928   +0.0350",
        "bob      0.9478    0.9728   +0.0250",
        "carol    0.9378    0.9528   +0.0150",
        "dave     0.9278    0.9328   +0.0050",
        "erin     0.9178    0.9128   -0.0050  worst of both",
        "",
        "personal models bought +0.0121 val_acc on each node's own data",
        "worst node: erin 0.9178 → 0.9128",
        "better with the global model: erin",
    ]
    assert "personal: val_acc" not in "\n".join(lines), "the table says it"


def test_of_many_personal_models_the_worst_come_first_and_the_rest_is_counted():
    story = finished(*SITES, compare=False, personal=True)
    lines = drawn(story, 80, 24).splitlines()
    first = lines.index("node       global  personal      gain") + 1
    assert lines[first].split() == ["site-04", "0.9178", "0.9128", "-0.0050", "worst", "of", "both"]
    assert lines[first + 1].startswith("site-09 ")
    assert lines[first + 2] == "… and 48 more, none served worse by its own model"
    long = drawn(story, 80).splitlines()
    assert "… and 39 more, none served worse by its own model" in long, "the table of nodes has the others"


def test_two_tables_share_what_room_there_is():
    lines = drawn(finished(*SITES, personal=True, finetune=True), 120, 60).splitlines()
    table = lines.index("personal models fine-tuned after round 10, on each node's own data")
    words = lines.index("fine-tuned models bought +0.0143 val_acc on each node's own data")
    assert words - table > 6, "some nodes are shown"
    assert lines[words + 2] == "better with the global model: site-04, site-09, site-14 and 7 others"
    assert lines[words + 4].split("'s")[0].strip() == "on everyone"
    assert lines[-1] == "better alone on its own data: site-00, site-01"
    low = drawn(finished(*NAMES, personal=True, finetune=True), 80, 26)
    assert "\nfine-tuned models bought" in low
    assert "\nfederating bought" in low


def test_nodes_that_fine_tune_say_so():
    story = finished(compare=False, personal=True)
    story.state = dataclasses.replace(story.state, status="running", ended_at=None)
    story.started(10, "alice", kind="finetune")
    story.working(TaskKey(round=10, node="alice", kind="finetune"), step=10)
    lines = drawn(story).splitlines()
    assert lines[1].startswith("10 of 10 rounds, fine-tuning  ━")
    assert re.search(r"alice  fine-tuning .* 25% ", lines[4])


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("height", [6, 10, 24, 60, None])
@pytest.mark.parametrize("names", [(), SITES])
def test_every_picture_fits(moment, width, height, names):
    lines = drawn(told_once(moment, names), width, height).splitlines()
    assert height is None or len(lines) <= height
    assert max(map(len, lines)) <= width
    assert "…" not in lines[0] or width < 60


def test_of_many_nodes_the_failed_and_the_busy_come_first_and_the_rest_is_counted():
    lines = drawn(mid_round(*SITES), 80, 24).splitlines()
    assert [line.split()[1] for line in lines[4:8]] == ["site-01", "site-02", "site-03", "site-04"]
    assert "… and 40 more: 39 waiting, 1 done" in lines


def test_columns_give_way_in_the_order_of_their_worth():
    titles = {width: drawn(mid_round(), width).splitlines()[3].split() for width in (40, 60, 80, 120)}
    assert titles[40] == ["node", "state", "progress"]
    assert titles[60] == ["node", "state", "progress", "loss", "val_acc", "time"]
    assert titles[80] == ["node", "state", "progress", "loss", "val_acc", "time", "↓", "sent", "↑", "recv"]
    assert titles[120][-5:] == ["↓", "sent", "↑", "received", "examples"]


def test_local_epochs_have_a_column_where_there_are_several():
    story = mid_round()
    story.working(TaskKey(round=4, node="carol"), step=20, epoch=2, epochs=5)
    text = drawn(story, 120)
    assert "epoch" in text
    assert re.search(r"carol .* 30% +2/5", text)


@pytest.mark.parametrize("phase", ["waiting", "loading", "saving"])
def test_a_task_that_does_not_train_yet_says_so(phase):
    story = mid_round()
    story.working(TaskKey(round=4, node="carol"), phase=phase)
    assert re.search(rf"carol +training +{phase}", drawn(story))


def test_a_node_out_of_reach_says_so_until_its_task_is_heard_of_again():
    story = mid_round()
    story.working(TaskKey(round=4, node="carol"), phase="unreachable")
    assert re.search(r"○ carol +unreachable +its work go", drawn(story))
    assert "○ carol  unreachable" in drawn(story, 80, 9), "it is among the first that are shown"
    story.working(TaskKey(round=4, node="carol"), step=20)
    assert re.search(r"carol +training .* 50%", drawn(story))


def test_a_straggler_is_marked_and_named_with_what_keeps_it():
    story = mid_round("alice", "bob", "carol", "dave")
    story.trained(4, "carol")
    assert "waiting for" not in drawn(mid_round())
    story.now += timedelta(seconds=30)
    lines = drawn(story, 80, 24).splitlines()
    assert lines[7].startswith("! dave   training    ━━━")
    assert lines[8] == "waiting for dave (compute, 8.1x the median of 4s)"


def test_of_many_stragglers_a_few_are_named_and_their_rows_come_first():
    story = mid_round(*SITES)
    for name in SITES[4:]:
        story.started(4, name)
    for name in SITES[4:40]:
        story.trained(4, name, after=0.1)
    story.now += timedelta(seconds=600)
    lines = drawn(story, 80, 24).splitlines()
    assert [line.split()[:2] for line in lines[4:7]] == [["✗", "site-01"], ["!", "site-02"], ["!", "site-03"]]
    told = next(index for index, line in enumerate(lines) if line.startswith("waiting for"))
    assert " ".join(lines[told : told + 2]).startswith(
        "waiting for site-02 (compute), site-03 (compute), site-40 (compute) and 9 others: "
    )


# --- what the lines carry ------------------------------------------------------------------------------------------


def coded(forecast=None):
    """A round of two nodes, whose updates a codec made 18 times smaller."""
    story = Story("alice", "bob")
    story.ready()
    story.built(forecast)
    story.opened(1)
    for name in story.nodes:
        story.started(1, name)
        story.trained(
            1, name, bytes=Traffic(sent=1_000_000, received=100_000, raw_sent=1_200_000, raw_received=1_800_000)
        )
    return story


def test_bytes_without_a_codec_and_without_a_forecast_are_said_as_they_are():
    assert "of raw" not in (text := drawn(mid_round(), 120))
    assert "forecast" not in text
    assert "of raw" not in (status := status_of(mid_round()))
    assert "forecast" not in status


def test_what_codecs_save_is_said_where_they_do():
    text, status = drawn(coded(), 120), status_of(coded())
    assert "↓ 2.0 MB, 83% of raw · ↑ 200 kB, 1/18 of raw" in text
    assert "↓ 2.0 MB, 83% of raw · ↑ 200 kB, 1/18 of raw" in status
    for drawing in (text, status):
        assert "of raw" in next(line for line in drawing.splitlines() if "state" in line)
        assert "1.0 MB" in (row := next(line for line in drawing.splitlines() if "alice " in line))
        assert " 37% " in row


def test_the_forecast_stands_beside_what_came():
    forecast = Traffic(sent=66_000_000, received=12_300_000)
    text, status = drawn(coded(forecast), 120), status_of(coded(forecast))
    assert "1/18 of raw · forecast for the whole run: ↓ 66 MB ↑ 12 MB" in text
    assert "\nforecast for the whole run: ↓ 66 MB ↑ 12 MB\n" in status
    done = coded(forecast)
    done.tell(RunFinished)
    assert "\nforecast: ↓ 66 MB ↑ 12 MB\n" in status_of(done)
    assert report(done.state, alive=False).to_json()["forecast"]["sent"] == 66_000_000


def status_of(story):
    console = Console(file=io.StringIO(), width=120, force_terminal=False, _environ={})
    console.print(Drawing(lambda width: status_lines(report(story.state, alive=False), width)))
    return console.file.getvalue()


def planned_lines(forecast):
    return [f"{label}: {value}" for label, value in forecast_pairs(forecast)]


def test_a_dry_run_says_what_each_line_would_carry_the_slowest_first():
    one = LineForecast(
        nodes=("alice",),
        round=Traffic(sent=10**6, received=10**5, raw_received=18 * 10**5),
        run=Traffic(sent=4 * 10**6, received=3 * 10**5),
        line_s=None,
    )
    slow = dataclasses.replace(one, nodes=("bob", "carol"), line_s=4000.0)
    total = Forecast(lines=(one, slow), round=one.round + slow.round, run=one.run + slow.run, line_s=4000.0)
    assert planned_lines(total) == [
        "a round: 2.0 MB to the nodes, 200 kB (1/18 of raw) back",
        "the run: 8.0 MB to the nodes, 600 kB back; at least 1h 06m on the line",
        (
            "bob and 1 more: 1.0 MB to it, 100 kB (1/18 of raw) back a round; 4.0 MB and 300 kB in the run; "
            "at least 1h 06m on the line"
        ),
        "alice: 1.0 MB to it, 100 kB (1/18 of raw) back a round; 4.0 MB and 300 kB in the run",
    ]
    alone = dataclasses.replace(total, lines=(one,), line_s=None)
    assert len(planned_lines(alone)) == 2
    many = dataclasses.replace(total, lines=(one,) * 50)
    assert planned_lines(many)[-1] == ": and 42 more lines"


@pytest.mark.parametrize(
    ("number", "raw", "said"),
    [
        (5, 5, ""),
        (0, 10, ""),
        (10, 180, "1/18 of raw"),
        (10, 20, "50% of raw"),
        (83, 100, "83% of raw"),
        (11, 10, "110% of raw"),
    ],
)
def test_what_codecs_make_of_bytes_is_said_with_sense(number, raw, said):
    assert of_raw(number, raw) == said


def waiting_for_bob(**patience):
    """Round 1 of three nodes: bob was lost in it, and the others have sent their updates."""
    story = Story(**patience)
    story.ready()
    story.built()
    story.opened(1, wanted=3, quorum=3)
    for name in story.nodes:
        story.started(1, name)
    story.lost("bob")
    story.trained(1, "alice")
    story.trained(1, "carol", after=1.0, steps=120, partial=True)
    story.now -= timedelta(seconds=2)
    return story


def test_a_round_that_waits_says_for_whom_and_how_long():
    story = waiting_for_bob(patience_s=300.0)
    story.now -= timedelta(seconds=2)
    text = drawn(story, 120)
    assert "✗ bob    lost        no route to host; looked for again in 1s\n" in text
    assert (
        "round 1 waits for bob: no route to host; looked for again in 1s, given up on in 4m 59s "
        "(2 of 3 updates, 3 needed)\n"
    ) in text
    assert "given up" not in drawn(waiting_for_bob(), 120), "its patience has no end"


def test_work_that_was_taken_in_part_is_shown_with_its_steps():
    text = drawn(waiting_for_bob())
    assert re.search(r"✓ carol +done +120 steps ", text)
    assert "\ntaken in part: carol in 1 round (120 steps)\n" in text


def test_a_node_that_was_never_here_is_not_waited_for():
    story = preparing()
    assert "permission denied (publickey) for fed@bob.example.org; not waited for, looked" in drawn(story, 120)
    assert "permission denied (publickey) for fed@bob.example.org\n" in drawn(story, 120, alive=False)


def test_a_node_whose_owner_says_not_now_tells_when_it_is_asked_again():
    story = waiting_for_bob()
    story.tell(NodeDeclined, node="bob", reason="outside its hours", seconds=2700)
    text = drawn(story, 120)
    assert "○ bob    away        outside its hours; asked again in 44m 58s\n" in text
    assert "round 1 waits for bob: outside its hours; asked again in 44m 58s (2 of 3 updates, 3 needed)\n" in text


def test_a_round_that_cannot_be_opened_names_the_nodes_it_waits_for():
    story = Story("alice", "bob")
    story.ready()
    story.built()
    for name in story.nodes:
        story.tell(NodeDeclined, after=0, node=name, reason="it runs on battery", seconds=600)
    assert "round 1 waits for alice, bob; asked again in 9m 58s\n" in drawn(story, 80)


def test_a_run_tells_who_contributed_to_nothing_and_why(capsys):
    story = Story("alice", "bob", "carol", "dave", rounds=2)
    story.ready()
    story.built()
    for number in (1, 2):
        story.tell(RoundOpened, round=number, nodes=("alice", "bob"), wanted=1, quorum=1)
        for name in ("alice", "bob"):
            story.started(number, name)
        story.trained(number, "alice")
        story.aggregated(number, "alice")
        story.failed(number, "bob", UNNEEDED, retryable=False)
        assert sentence(story.events[-1], story.state) == f"round {number}: bob was not needed any more"
    story.tell(RunFinished)
    results.launched(story.state, was_live=True, as_json=False)
    said = capsys.readouterr().err
    assert "bob contributed to no round: others were faster, each of the 2 times that it was asked" in said
    assert "carol, dave contributed to no round: never drawn" in said


def test_the_step_of_a_round_with_masked_updates_stands_beside_its_number():
    story = Story("alice", "bob", "carol", rounds=3)
    story.ready()
    story.built()
    story.opened(1, secure=True)
    words = ("keys", "shares of secrets", "training", "signatures", "unmasking")
    for number, (step, word) in enumerate(zip(STEPS, words, strict=True), 1):
        assert f"round 1 of 3, step {number} of 5: {word}" in drawn(story)
        standing = report(story.state, alive=True)
        assert standing.to_json()["open"]["step"] == step
        told = status_lines(standing, 100)[1].plain
        assert told.startswith(f"0 of 3 rounds, round 1, step {number} of 5: {word} ")
        if step == "train":
            for name in story.nodes:
                story.trained(1, name)
        if step != STEPS[-1]:
            story.tell(StepClosed, round=1, step=step, nodes=story.nodes)
    story.tell(UpdateLost, task=TaskKey(round=1, node="bob"), reason="it is not there")
    assert "step 3 of 5: training" in drawn(story)
    story.trained(1, "bob")
    story.aggregated(1, *story.nodes)
    story.opened(2)
    assert "step" not in drawn(story)
    assert report(story.state, alive=True).to_json()["open"]["step"] is None


def test_a_run_tells_that_a_round_was_abandoned_and_for_whose_sake(capsys):
    story = Story("alice", "bob", rounds=1)
    story.ready()
    story.built()
    story.opened(1, secure=True)
    story.tell(RoundAbandoned, round=1, nodes=("bob",), reason="too few right shares came to unmask bob")
    told = "round 1 is abandoned: too few right shares came to unmask bob; later rounds go without bob"
    assert sentence(story.events[-1], story.state) == told
    story.tell(RunFinished)
    results.launched(story.state, was_live=True, as_json=False)
    said = capsys.readouterr().err
    assert "bob contributed to no round: too few right shares came to unmask bob" in said
    assert "alice contributed to no round: its rounds were abandoned" in said
    bob = next(node for node in report(story.state, alive=False).nodes if node.name == "bob")
    assert (bob.state, bob.error) == ("failed", "too few right shares came to unmask bob")


def test_a_run_tells_at_its_end_for_whom_it_has_waited():
    story = finished("alice", "bob", "carol", "dave", compare=False)
    assert "waited 40s in all for the slowest: dave 75% (queue), carol 25% (queue)\n" in drawn(story)
    show.show_summary(story.state)
    quick = finished("alice", compare=False)
    assert "waited" not in drawn(quick)


def test_a_node_that_is_made_ready_shows_what_was_said_last():
    story = preparing()
    said = {"carol": "Downloading torch-2.13.0-cp311 (187 MB)", "dave": "\x1b[2Junpacking", "alice": "of long ago"}
    picture = dashboard(story.state, {}, [], story.now, preparing=said)
    file = io.StringIO()
    Console(file=file, width=90, no_color=True).print(picture)
    text = file.getvalue()
    assert re.search(r"carol +preparing +Downloading torch-2.13.0", text)
    assert re.search(r"dave +preparing +unpacking", text)
    assert "long ago" not in text, "alice is ready"
    assert max(map(len, text.splitlines())) <= 90


def test_what_a_node_trains_on_has_a_column_where_it_is_known():
    story = mid_round()
    assert " on" not in drawn(story, 120).splitlines()[3]
    story.trained(4, "carol", accelerator="cuda:1")
    lines = drawn(story, 120).splitlines()
    assert lines[3].endswith("  on")
    assert next(line for line in lines if "carol" in line).endswith("  cuda:1")
    assert report(story.state, alive=True).to_json()["nodes"][2]["accelerator"] == "cuda:1"


def test_steps_of_unknown_number_are_counted():
    story = mid_round()
    story.working(TaskKey(round=4, node="carol"), step=17, steps=0)
    assert re.search(r"carol +training .* #17 ", drawn(story))


def test_telemetry_says_more_than_the_journal():
    story = mid_round()
    story.started(3, "erin", kind="evaluate")
    story.evaluated(3, "erin", 0.9)
    story.working(TaskKey(round=4, node="erin"), step=10)
    assert re.search(r"erin +training .* 25%", drawn(story))


def test_telemetry_of_a_task_that_is_over_is_not_shown():
    story = mid_round()
    story.working(TaskKey(round=4, node="alice"), step=10)
    story.working(TaskKey(round=4, node="bob"), step=10)
    story.working(TaskKey(round=2, node="erin"), step=10)
    lines = drawn(story).splitlines()
    assert [lines[index].split()[2] for index in (4, 5, 8)] == ["done", "failed", "waiting"]


def test_an_interrupted_run_stands_still_and_says_how_to_resume():
    text = drawn(mid_round(), alive=False)
    assert "■ interrupted" in text
    assert "about" not in text, "nobody knows how long it will take"
    assert "at work when the coordinator left, and perhaps still: carol, dave" in text
    assert text.splitlines()[-1] == "to resume: fedctl launch --resume digits-20261122-023000"
    assert re.search(r"\? carol +unknown +0.300", text)


def test_a_failed_run_gives_its_whole_reason():
    story = mid_round()
    reason = "round 4 has 1 of the 4 updates it needs (bob: CUDA out of memory; carol: the worker was killed)"
    story.tell(RunFailed, reason=reason)
    text = drawn(story, 60, 30)
    assert reason in " ".join(text.split())


def test_a_held_run_says_how_to_go_on():
    story = mid_round()
    story.tell(RoundHeld, round=4)
    assert "to go on: fedctl aggregate digits-20261122-023000 --commit" in drawn(story)


def test_a_resumed_run_makes_its_nodes_ready_again():
    story = mid_round()
    story.resumed()
    text = drawn(story)
    assert "● running" in text
    assert re.search(r"bob +failed", text)


def test_hostile_text_neither_drives_the_terminal_nor_is_markup():
    story = mid_round()
    story.failed(4, "carol", HOSTILE)
    text = drawn(story, 120)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    assert "attempt 1: [bold red]boom[/] txt" in text
    assert "owned" not in text


def test_a_terminal_that_knows_only_ascii_gets_ascii():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    story = finished()
    story.failed(10, "bob", "kaputt: Übergröße", kind="compare")
    drawn(story, 100, file=raw)
    assert b"+ alice  done        ====" in raw.buffer.getvalue()


def test_without_colour_no_colour_is_written(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = drawn(mid_round(), force_terminal=True, no_color=None)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)


def told(story):
    return verdict(report(story.state, alive=False))[0].plain


@pytest.mark.parametrize(
    ("mode", "alone", "federated", "words"),
    [
        ("max", 0.4, 0.9, "federating bought +0.5000 score on everyone's data"),
        ("max", 0.9, 0.85, "federating did not help: -0.0500 score on everyone's data"),
        ("max", 0.9, 0.90001, "federating made no difference to score on everyone's data"),
        ("min", 0.9, 0.4, "federating bought -0.5000 score (lower is better) on everyone's data"),
        ("min", 0.4, 0.9, "federating did not help: +0.5000 score (lower is better) on everyone's data"),
        ("max", math.nan, 0.9, "no score to compare by"),
    ],
)
def test_the_verdict_is_honest(mode, alone, federated, words):
    story = Story("alice", "bob", metric="score", mode=mode, compare=True)
    story.ready()
    for name in story.nodes:
        story.compared(name, {"global": federated, "alone/alice": alone, "alone/bob": alone})
    assert told(story) == words


@pytest.mark.parametrize(
    ("mode", "everyones", "own", "words"),
    [
        ("max", 0.4, 0.9, "personal models bought +0.5000 score on each node's own data"),
        ("max", 0.9, 0.85, "personal models did not help: -0.0500 score on each node's own data"),
        ("max", 0.9, 0.90001, "personal models made no difference to score on each node's own data"),
        ("min", 0.9, 0.4, "personal models bought -0.5000 score (lower is better) on each node's own data"),
        ("max", 0.9, math.nan, "no score to compare by (2 diverged)"),
        ("max", math.nan, 0.9, "no score to compare by"),
    ],
)
def test_the_verdict_on_personal_models_is_honest(mode, everyones, own, words):
    story = Story("alice", "bob", metric="score", mode=mode)
    story.ready()
    for name in story.nodes:
        story.evaluated(0, name, everyones, personal=own)
    assert personal_verdict(report(story.state, alive=False))[0].plain == words


def test_the_verdict_names_the_worst_node_of_each_side_and_those_better_off_without():
    story = Story("alice", "bob", mode="min", metric="val_loss")
    story.ready()
    story.evaluated(0, "alice", 1.5, personal=0.5)
    story.evaluated(0, "bob", 0.7, personal=0.9)
    assert [line.plain for line in personal_verdict(report(story.state, alive=False))] == [
        "personal models bought -0.400 val_loss (lower is better) on each node's own data",
        "worst node: alice 1.50 with the global model, bob 0.900 with its own",
        "better with the global model: bob",
    ]


def fine_tuned_in_part():
    """Of three nodes one has fine-tuned, one has failed to, and one is lost."""
    story = Story("alice", "bob", "carol", rounds=1)
    story.ready()
    story.built()
    story.scored = lambda _: None
    story.round(1)
    for name, value in (("alice", 0.9), ("bob", 0.5), ("carol", 0.7)):
        story.evaluated(1, name, value)
    story.finetuned("alice", 0.9, 0.95)
    story.failed(1, "bob", kind="finetune")
    story.lost("carol")
    story.tell(RunFinished)
    return story


def test_personal_models_of_some_nodes_are_not_taken_for_all():
    lines = drawn(fine_tuned_in_part(), 100).splitlines()
    assert lines[-5:] == [
        "personal models fine-tuned after round 1 on 1 of 3 nodes, each on its own data",
        "node     global  personal      gain",
        "alice    0.9000    0.9500   +0.0500",
        "",
        "fine-tuned models bought +0.0500 val_acc on 1 of 3 nodes, each on its own data",
    ]


def told_of_personal(story):
    return [line.plain for line in personal_verdict(report(story.state, alive=False))]


def test_a_personal_model_that_has_diverged_hides_no_other():
    story = Story("alice", "bob", "carol")
    story.ready()
    story.evaluated(0, "alice", 0.9, personal=0.95)
    story.evaluated(0, "bob", 0.8, personal=math.nan)
    story.evaluated(0, "carol", 0.7, personal=0.72)
    assert told_of_personal(story) == [
        "personal models bought +0.0350 val_acc on 2 of 3 nodes (1 diverged), each on its own data",
        "worst node: carol 0.7000 with the global model, bob nan with its own",
        "better with the global model: bob",
    ]


def test_where_both_models_have_diverged_neither_is_better():
    story = Story("alice", "bob")
    story.ready()
    story.evaluated(0, "alice", 0.9, personal=0.95)
    story.evaluated(0, "bob", math.inf, personal=math.inf)
    assert told_of_personal(story)[0].startswith("personal models bought +0.0500 val_acc on 1 of 2 nodes (1 diverged)")
    assert not any("better" in line for line in told_of_personal(story))


def keeping_at_home(**kinds):
    """A run in which nodes share a part of the model only; `kinds` are what `Story` is told."""
    story = finished("alice", "bob", compare=False, **kinds)
    story.state = dataclasses.replace(story.state, rest=blob("e"))
    return story


PART = "the global model, in which what stays at home is as it was at first"


@pytest.mark.parametrize(
    ("kinds", "words"),
    [
        ({"personal": True}, f"personal models: +0.0295 val_acc against {PART}"),
        ({"personal": True, "finetune": True}, f"fine-tuned models: +0.0295 val_acc against {PART}"),
        ({"finetune": True}, "fine-tuned models bought +0.0295 val_acc on each node's own data"),
    ],
)
def test_the_verdict_says_what_a_global_model_lacks_where_nodes_train_a_part_for_themselves(kinds, words, capsys):
    story = keeping_at_home(**kinds)
    assert told_of_personal(story)[0] == words
    results.launched(story.state, was_live=False, as_json=False)
    said = " ".join("".join(capsys.readouterr()).split())
    assert said.count("as it was at first") == words.count(PART)


def test_without_a_difference_to_a_part_the_verdict_says_so():
    story = Story("alice", "bob", "carol", mode="min", metric="val_loss")
    story.ready()
    story.evaluated(0, "alice", 0.5, personal=0.5)
    story.state = dataclasses.replace(story.state, rest=blob("e"))
    assert told_of_personal(story) == [f"personal models: no difference in val_loss on 1 of 3 nodes against {PART}"]
    story.evaluated(0, "bob", 0.5, personal=0.9)
    told = f"personal models: +0.200 val_loss (lower is better) on 2 of 3 nodes against {PART}"
    assert told_of_personal(story)[0] == told


@pytest.mark.parametrize("height", range(12))
@pytest.mark.parametrize("compare", [True, False])
def test_what_came_of_a_run_keeps_to_its_height(height, compare):
    known = report(finished(*SITES[:30], personal=True, compare=compare).state, alive=False)
    assert len(personal_lines(known, 60, height)) <= height
    assert len(closing_lines(known, 60, height)) <= height
    assert any("bought" in line.plain for line in closing_lines(known, 60, height)) == (height > 0)


def test_every_kind_of_event_has_a_sentence():
    story = mid_round()
    story.lost("erin")
    story.tell(NodeDeclined, node="dave", reason="outside its hours", seconds=60)
    story.tell(RoundWidened, round=4, nodes=("erin",))
    story.tell(UpdateLost, task=TaskKey(round=4, node="alice"), reason="it is gone from the disk")
    message = Blob(digest="a" * 64, size=10)
    story.tell(MessageReceived, task=TaskKey(round=4, node="alice", kind="keys"), message=message, seconds=0.1)
    story.tell(StepClosed, round=4, step="keys", nodes=("alice", "bob"))
    story.tell(RoundHeld, round=4)
    story.tell(RoundAbandoned, round=4, nodes=("bob",), reason="its masks do not come off")
    story.tell(RunFailed, reason="no node is left")
    events = [*finished().events, *story.events]
    assert {type(event).__name__ for event in events} == set(EVENTS)
    for event in events:
        words = sentence(event, story.state)
        assert words
        assert words == plain(words)
        assert not words.endswith(".")


def lines_of(story):
    stream, state = io.StringIO(), RunState()
    with LinesSink(stream) as sink:
        for event in story.events:
            state = apply(state, event)
            sink.event(event, state)
    return stream.getvalue().splitlines()


def test_the_lines_of_a_run():
    story = Story("alice", "bob", rounds=1)
    story.ready("alice")
    story.lost("bob")
    story.built()
    story.evaluated(0, "alice", 0.1)
    story.opened(1)
    story.started(1, "alice")
    story.failed(1, "alice")
    story.started(1, "alice", attempt=2)
    story.trained(1, "alice", attempt=2)
    story.aggregated(1, "alice")
    story.evaluated(1, "alice", 0.9531)
    story.started(1, "alice", kind="evaluate")
    story.failed(1, "alice", "no data", kind="evaluate")
    story.started(0, "alice", kind="alone")
    story.trained(0, "alice", kind="alone")
    story.compared("alice", {"global": 0.9, "alone/alice": 0.5})
    story.tell(type(finished().events[-1]))
    assert lines_of(story) == [
        "02:30:00 run digits-20261122-023000 started: 2 nodes, 1 round",
        "02:30:00 alice is ready",
        "02:30:01 bob is lost: no route to host; it is looked for again",
        "02:30:02 coordinator started building the first model",
        "02:30:05 the first model is built (1.2 MB)",
        "02:30:05 round 0: alice scored the model: val_acc 0.1000",
        "02:30:06 round 1 opened with 2 nodes",
        "02:30:06 round 1: alice started training",
        "02:30:07 round 1: alice failed (attempt 1): CUDA out of memory",
        "02:30:07 round 1: alice started training (attempt 2)",
        "02:30:09 round 1: alice sent its update of 1.2 MB (600 examples, 11s)",
        "02:30:10 round 1 aggregated from 1 node in 3.9s",
        "02:30:10 round 1: alice scored the model: val_acc 0.9531",
        "02:30:10 round 1: alice started evaluating the model",
        "02:30:11 round 1: alice failed evaluating the model (attempt 1): no data",
        "02:30:12 alice started training alone",
        "02:30:14 alice has trained alone (600 examples, 11s)",
        "02:30:14 alice scored 2 models",
        "02:30:15 run finished in 15s: val_acc 0.9531",
    ]


def test_the_lines_of_personal_models():
    story = Story("alice", rounds=1)
    story.ready()
    story.built()
    story.opened(1)
    story.trained(1, "alice", fresh=True)
    story.aggregated(1)
    story.evaluated(1, "alice", 0.9, personal=0.95)
    story.started(1, "alice", kind="finetune")
    story.failed(1, "alice", "no data", kind="finetune")
    story.finetuned("alice", 0.93, 0.97)
    assert not is_routine(story.events[-1]), "the table of nodes does not keep what it gained"
    story.tell(RunFinished)
    told = [line.partition(" ")[2] for line in lines_of(story)][5:]
    assert told == [
        "round 1: alice sent its update of 1.2 MB (600 examples, 11s); it began anew: what it had kept was gone",
        "round 1 aggregated from 1 node in 2.3s",
        "round 1: alice scored the model: val_acc 0.9000, personal 0.9500",
        "alice started fine-tuning its own model",
        "alice failed fine-tuning its own model (attempt 1): no data",
        "alice fine-tuned its own model: val_acc 0.9700 (global 0.9300)",
        "run finished in 10s: val_acc 0.9000, personal 0.9700 (global 0.9300)",
    ]


def test_the_last_line_of_a_run_compares_on_the_same_nodes():
    assert lines_of(finished(personal=True))[-1].endswith(": val_acc 0.9467, personal 0.9706")
    assert lines_of(fine_tuned_in_part())[-1].endswith(
        ": val_acc 0.7000, personal 0.9500 (global 0.9000) on 1 of 3 nodes"
    )


def test_a_resumed_run_says_so():
    story = mid_round()
    story.resumed()
    assert "run digits-20261122-023000 resumed" in lines_of(story)[-6]


def test_a_hostile_error_stays_one_line():
    story = mid_round()
    before = len(lines_of(story))
    story.failed(4, "carol", HOSTILE)
    assert len(lines_of(story)) == before + 1


def test_a_reader_that_leaves_does_not_end_the_run():
    class Gone(io.StringIO):
        def write(self, _):
            raise BrokenPipeError

    story = mid_round()
    sink = LinesSink(Gone())
    for event in story.events[:3]:
        sink.event(event, story.state)


def test_lines_that_an_encoding_cannot_say_are_said_in_part():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    story = mid_round()
    story.failed(4, "carol", "größer")
    LinesSink(raw).event(story.events[-1], story.state)
    assert b"gr??er" in raw.buffer.getvalue()


def live(story, console):
    sink = LiveSink(console, now=lambda: story.now)
    state = RunState()
    with sink:
        for event in story.events:
            state = apply(state, event)
            sink.event(event, state)
        for sample in story.progress.values():
            sink.progress(sample)
    return sink


def terminal(**options):
    return Console(file=io.StringIO(), force_terminal=True, width=80, height=24, no_color=True, **options)


def test_the_last_picture_stays_and_the_cursor_comes_back():
    console = terminal()
    live(finished(), console)
    text = console.file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "federating bought" in text


def test_the_terminal_is_given_back_when_the_run_is_interrupted():
    console, story = terminal(), mid_round()
    sink = LiveSink(console, now=lambda: story.now)
    sink.event(story.events[-1], story.state)
    with pytest.raises(KeyboardInterrupt), sink:
        raise KeyboardInterrupt
    sink.close()
    text = console.file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")
    assert "fedctl launch --resume digits" in text


def test_a_watcher_that_leaves_does_not_call_the_run_interrupted():
    console, story = terminal(), mid_round()
    sink = LiveSink(console, watching=True, now=lambda: story.now)
    sink.event(story.events[-1], story.state)
    with pytest.raises(KeyboardInterrupt), sink:
        raise KeyboardInterrupt
    assert "running" in console.file.getvalue()
    assert "interrupted" not in console.file.getvalue()


def test_a_watcher_that_leaves_says_that_the_run_goes_on(capsys, tmp_path):
    def moments():
        story = mid_round()
        yield story.state, story.events[-1:], True
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        results.followed(moments(), words=tmp_path / "coordinator.log")
    run = mid_round().state.run
    assert capsys.readouterr().err == f"left run {run} as it is; `fedctl status {run} --follow` comes back to it\n"


def test_lines_tell_once_that_a_node_is_out_of_reach_and_once_that_it_is_back():
    stream, key, away = io.StringIO(), TaskKey(round=4, node="carol"), TaskKey(round=4, node="erin")
    sink, story = LinesSink(stream), mid_round()
    sink.event(story.events[-1], story.state)
    for phase in ("training", "unreachable", "unreachable", "loading", "training"):
        sink.progress(Progress(key=key, phase=phase))
    sink.progress(Progress(key=away, phase="unreachable"))
    sink.progress(Progress(key=TaskKey(round=2, node="alice"), phase="unreachable"))
    story.trained(4, "erin")
    sink.event(story.events[-1], story.state)
    told = [line.partition(" ")[2] for line in stream.getvalue().splitlines()[1:]]
    assert told[:4] == [
        "carol is unreachable; what it does goes on there",
        "carol is back",
        "erin is unreachable; what it does goes on there",
        "erin is back",
    ]
    assert told[4].startswith("round 4: erin sent its update")


def test_lines_tell_now_and_then_how_a_node_is_made_ready():
    stream, times = io.StringIO(), iter([0, 1, 11, 12, 13, 30])
    sink = LinesSink(stream, clock=lambda: next(times))
    for node, text in [
        ("alice", "Collecting torch"),
        ("alice", "too soon"),
        ("alice", "Collecting torch"),
        ("bob", "its own turn"),
        ("alice", "\x1b[2JInstalling " + "x" * 500),
        ("alice", "done"),
    ]:
        sink.progress(Preparing(node=node, text=text))
    told = [line.partition(" ")[2] for line in stream.getvalue().splitlines()]
    assert told[:2] == ["alice: Collecting torch", "bob: its own turn"]
    assert told[2].startswith("alice: Installing xxx")
    assert len(told[2]) <= 160
    assert told[3:] == ["alice: done"]


def test_who_begins_to_watch_is_not_told_how_nodes_were_made_ready_that_are_long_since():
    stream, story = io.StringIO(), preparing()
    sink = LinesSink(stream)
    sink.event(story.events[-1], story.state)
    sink.progress(Preparing(node="alice", text="Collecting torch"))
    sink.progress(Preparing(node="carol", text="Collecting numpy"))
    assert [line.partition(" ")[2] for line in stream.getvalue().splitlines()[1:]] == ["carol: Collecting numpy"]


def test_before_anything_is_known_nothing_is_drawn():
    console = terminal()
    with LiveSink(console):
        pass
    assert not re.sub(r"\x1b\[[?0-9]*[a-zA-Z]", "", console.file.getvalue()).strip()


def test_telemetry_ends_with_its_task():
    story = mid_round()
    sink = LiveSink(terminal(), now=lambda: story.now)
    for sample in story.progress.values():
        sink.progress(sample)
    story.trained(4, "carol")
    sink.event(story.events[-1], story.state)
    assert list(sink._progress) == ["r0004/dave/a1"]


def test_a_new_width_begins_on_a_clean_screen():
    console, story = terminal(), mid_round()
    with LiveSink(console, now=lambda: story.now) as sink:
        sink.event(story.events[-1], story.state)
        sink._live.refresh()
        console.width = 60
    assert "\x1b[2J\x1b[H" in console.file.getvalue()


def test_the_sink_follows_where_stdout_goes(capsys):
    story = mid_round()
    with open_sink() as sink:
        sink.event(story.events[0], story.state)
    with open_sink(json=True) as sink:
        sink.event(story.events[1], story.state)
    out, err = capsys.readouterr()
    assert "started: 5 nodes" in out
    assert err == "02:30:00 alice is ready\n"


def test_an_error_is_a_sentence_and_the_next_thing_to_type(capsys):
    show.error(ConfigError("fed.yaml:14: nodes/1/[prt]: unknown key\x1b[2J", hint="did you mean `port`?"))
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: fed.yaml:14: nodes/1/[prt]: unknown key\nhint: did you mean `port`?\n")


def test_an_error_as_json_is_one_object_on_stdout(capsys):
    show.error(ConfigError("no such file", hint=None), json=True)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"error": {"message": "no such file", "hint": None, "exit_code": 3}}
    assert err == ""


def test_json_is_ascii_and_one_document(capsys):
    show.show_json({"error": "\x9b2J ö"})
    out = capsys.readouterr().out
    assert out.isascii()
    assert json.loads(out) == {"error": "\x9b2J ö"}


def test_status_and_summary_print_the_report(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    show.show_status(report(mid_round().state, alive=False))
    show.show_summary(finished().state)
    out = capsys.readouterr().out
    assert "? carol  unknown      0.300   0.7969          8.7 MB  3.7 MB       874\n" in out
    assert "to resume: fedctl launch --resume digits-20261122-023000\n" in out
    assert "worst node alone: carol 0.5367 → 0.9400\n" in out


def test_rows_and_pairs_are_plain_tables(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    show.show_rows(("node", "reach", "remedy"), [("alice", "ok", ""), ("bob", "failed", "[b]ssh-copy-id[/] " * 3)])
    show.show_pairs([("rounds", "10"), ("bytes a round", "12 MB")], title="plan")
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["node   reach   remedy", "alice  ok", "bob    failed  [b]ssh-copy-id[/]"]
    assert lines[-3:] == ["plan", "rounds         10", "bytes a round  12 MB"]


def test_a_note_goes_to_stderr(capsys):
    show.note("the nodes go on\n  resume [it]")
    assert capsys.readouterr() == ("", "the nodes go on\n  resume [it]\n")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("val_acc", 0.95314, "0.9531"),
        ("val_acc", 1.0, "1.0000"),
        ("val_acc", 0.0, "0.0000"),
        ("perplexity", 12.3456, "12.35"),
        ("perplexity", 12345.6, "12346"),
        ("perplexity", 1.5e7, "1.50e+7"),
        ("val_loss", 0.41234, "0.412"),
        ("val_loss", 1.23456, "1.23"),
        ("val_loss", 123.4, "123"),
        ("val_loss", 0.0000123, "1.2e-5"),
        ("val_loss", -3.14159, "-3.14"),
        ("val_loss", math.nan, "nan"),
        ("val_loss", None, ""),
    ],
)
def test_figures_have_as_many_digits_as_they_deserve(name, value, shown):
    assert figure(name, value) == shown


def test_changes_sizes_and_times():
    assert [change("acc", value) for value in (0.25, -0.25, 1e-9)] == ["+0.2500", "-0.2500", "0"]
    assert [size(n) for n in (0, 812, 1240, 99_960, 1_240_000, 999_600_000, 34 * 10**9, 2 * 10**12)] == [
        "0 B", "812 B", "1.2 kB", "100 kB", "1.2 MB", "1.0 GB", "34 GB", "2.0 TB",
    ]  # fmt: skip
    assert [clock(s) for s in (-1, 4.9, 63, 7500, 273_600)] == ["0s", "4s", "1m 03s", "2h 05m", "3d 04h"]
    assert [duration(s) for s in (0.04, 4.25, 9.96, 59.7)] == ["0.0s", "4.2s", "10s", "1m 00s"]
    assert [roughly(s) for s in (0, 41, 56, 290, 7500)] == ["5s", "45s", "1m", "5m", "2h 05m"]


def test_bars_and_plots_are_fine_to_a_part_of_a_cell():
    assert [bar(share, 4, "").plain for share in (-1, 0, 0.4, 0.5, 2)] == ["────", "────", "━╸──", "━━──", "━━━━"]
    assert plot([0.0, 0.5, 1.0], 3, 1, "")[0].plain == "▁▅█"
    assert [line.plain for line in plot([0.0, None, 1.0, math.nan], 4, 2, "")] == ["  █ ", "▁ █x"]
    assert plot(range(100), 4, 1, "")[0].plain == "▃▄▆█"
    assert [line.plain for line in plot([], 4, 1, "")] == [""]
