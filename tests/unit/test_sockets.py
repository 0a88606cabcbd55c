"""The streams below SSH, where several threads may hold the same one."""

import socket
import tempfile
import threading

import pytest

from fedctl.transports.sockets import Ear


@pytest.mark.parametrize("attempt", range(20))
def test_threads_that_close_a_line_at_once_all_find_it_closed(attempt):
    ours, theirs = socket.socketpair()
    said = tempfile.TemporaryFile()  # noqa: SIM115  it is the line that closes it
    said.write(b"one line\nconnection refused\n")
    ear, gate, complaints = Ear(ours, said=said), threading.Barrier(4), []

    def close():
        gate.wait()
        ear.close()
        complaints.append(ear.complaint)

    threads = [threading.Thread(target=close) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    theirs.close()
    assert complaints == ["connection refused"] * 4
