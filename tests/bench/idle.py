"""`idle`: what a node costs that has done its part of a round and waits for the others: bytes, and memory.

Another node is stopped in the middle of its training, so the round stays open for as long as the line is watched.
"""

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from fedctl.events import RoundAggregated
from tests.bed import processes
from tests.bed.server import Server
from tests.bench.digits import Workshop, journal, node_name
from tests.bench.measure import FEDCTL, Row, run, shown
from tests.bench.servers import environment, loopback, on_servers

WATCHED_S = 60.0
SETTLED_S = 5.0
FIRST, SECOND = node_name("00"), node_name("01")


def idle(workshop: Workshop) -> list[Row]:
    with loopback(FIRST, SECOND, relayed=True) as bed:
        folder = workshop.folder(2, rounds=1000)
        on_servers(folder)
        argv = [*FEDCTL, "launch", "--run", "bench"]
        with subprocess.Popen(
            argv, cwd=folder, env=environment(bed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as launch:
            try:
                processes.wait_until(lambda: _rounds(folder) >= 2, "no round is over", seconds=120)
                for pid in _pids(bed.nodes[SECOND], "fedctl.node.worker"):
                    os.kill(pid, signal.SIGSTOP)
                time.sleep(SETTLED_S)
                relay, server = bed.relay(bed.nodes[FIRST]), bed.nodes[FIRST]
                before = {way: relay.carried(way) for way in ("up", "down")}
                cpu = _cpu_s(server)
                time.sleep(WATCHED_S)
                moved = {way: relay.carried(way) - before[way] for way in ("up", "down")}
                cpu = _cpu_s(server) - cpu
                agent = _memory(server, "agent")
                worker = _memory(server, "fedctl.node.worker")
            finally:
                launch.kill()
                with suppress(RuntimeError):  # what it left on this machine; the servers' own dies with them
                    run([*FEDCTL, "stop", "bench"], cwd=folder, env=environment(bed))
    minutes = WATCHED_S / 60
    return [
        Row(
            name="idle: bytes a minute",
            value=sum(moved.values()) / minutes,
            unit="B",
            beside=f"{moved['up'] / minutes:.0f} up and {moved['down'] / minutes:.0f} down; the node's processes take "
            f"{shown(cpu / minutes * 1000, 'ms')} of CPU a minute",
            details={"moved": moved, "cpu_seconds": cpu},
        ),
        Row(
            name="idle: memory of the agent",
            value=agent["Pss"],
            unit="MB",
            at_most=15,
            beside=f"PSS; RSS is {shown(agent['Rss'], 'MB')}",
            details=agent,
        ),
        Row(
            name="idle: memory of the worker",
            value=worker["Pss"],
            unit="MB",
            beside=f"PSS; RSS is {shown(worker['Rss'], 'MB')}",
            details=worker,
        ),
    ]


def _rounds(folder: Path) -> int:
    """How many are over."""
    if not (folder / "runs" / "bench" / "events.jsonl").exists():
        return 0
    return sum(isinstance(event, RoundAggregated) for event in journal(folder))


def _pids(server: Server, what: str) -> list[int]:
    """Those processes of a node that have the words in their command line."""
    return [pid for pid in server.started() if what in Path(f"/proc/{pid}/cmdline").read_text()]


def _memory(server: Server, what: str) -> dict[str, float]:
    """The sum over processes, in MB: all pages that they have (Rss), and shared ones by share (Pss)."""
    found = {"Rss": 0.0, "Pss": 0.0}
    for pid in _pids(server, what):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.partition(":")[0] in found:
                found[line.partition(":")[0]] += int(line.split()[1]) * 1024 / 1e6
    return found


def _cpu_s(server: Server) -> float:
    """User and system time of what sessions started and still lives."""
    ticks = 0
    for pid in server.started():
        ticks += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return ticks / os.sysconf("SC_CLK_TCK")
