"""How a large file travels between here and a node: many requests under way at once, so that distance costs little.

Both ways go on at the byte where a line broke, and verify by SHA-256. What goes far goes over several lines, because
the server's window bounds each of them; what has a narrow `bandwidth` goes over one, in small blocks.
"""

import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from glob import escape
from io import FileIO
from pathlib import Path
from typing import Any

from fedctl.connection import Connection, Waiter
from fedctl.errors import ConnectionLost, NodeError
from fedctl.node.agent import BLOCK, sha256, write_all
from fedctl.records import Blob

AHEAD, NEAR_AHEAD = 8, 3
"""How many blocks are under way at once on a line; from a near node more would only wait here."""
FAR_S = 0.02
"""A round trip from which a second line is worth its price."""
LINES = 4
WORTH_SPLITTING = 16 * 2**20


def put(connection: Connection, blob: Blob, source: Path) -> int:
    """Send a blob unless it is there, from where an earlier try broke; returns the bytes that were sent."""
    for is_final in (False, True):
        stand = _stand(connection.ask("stat", digests=[blob.digest]), blob)
        try:
            match stand:
                case None:
                    return 0
                case int(begin):
                    if connection.block == BLOCK and blob.size - begin > WORTH_SPLITTING and connection.rtt_s() > FAR_S:
                        return _put_blocks(connection, blob, source, lines=LINES)
                    return _put_in_order(connection, blob, source, begin)
                case _:
                    return _put_blocks(connection, blob, source, lines=LINES if connection.rtt_s() > FAR_S else 1)
        except ConnectionLost:
            raise
        except NodeError:
            if is_final or stand == 0:
                raise
            # What was there before was not of this blob, and is gone; or another coordinator has completed it.
    raise AssertionError("the second try returns or raises")


def are_whole(connection: Connection, digests: Sequence[str]) -> set[str]:
    """Those of these blobs that are on the node."""
    found = connection.ask("stat", digests=list(digests)).get("blobs", {})
    return {digest for digest in digests if isinstance(found, dict) and _says_whole(found.get(digest))}


def _says_whole(stand: object) -> bool:
    return isinstance(stand, dict) and stand.get("whole") is True


def kept(blob: Blob, target: Path) -> int:
    """How many bytes of a file an earlier `fetch` has brought."""
    part = _part(blob, target)
    return part.stat().st_size if part.exists() else 0


def ahead_of(connection: Connection, blob: Blob) -> int:
    """How many blocks to ask for ahead of those that have come."""
    return NEAR_AHEAD if blob.size > AHEAD * BLOCK and connection.rtt_s() <= FAR_S else AHEAD


def fetch(
    begin: Callable[[int, int], Waiter], blob: Blob, target: Path, *, ahead: int = AHEAD, block: int = BLOCK
) -> None:
    """Bring a file here, from where an earlier try broke; `begin` asks for a number of bytes from an offset.

    So many blocks are asked for `ahead` of those that have come. Raises ConnectionLost, or NodeError when what comes is
    not that blob.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = _part(blob, target)
    for other in target.parent.glob(f".{escape(target.name)}.*.part"):
        if other != part:
            other.unlink()
    with part.open("a+b", buffering=0) as file:
        began = file.seek(0, os.SEEK_END)
        if began > blob.size:
            began = file.truncate(0)
        running = sha256(file, began)
        asked = came = began
        waiting: deque[Waiter] = deque()
        while came < blob.size:
            with suppress(ConnectionLost):  # what had come before that is not lost
                while asked < blob.size and len(waiting) < ahead:
                    waiting.append(begin(asked, min(block, blob.size - asked)))
                    asked += block
            if not waiting:
                raise ConnectionLost("the line broke")
            answer, piece = waiting.popleft()()
            limit = min(block, blob.size - came)
            if answer.get("size") != blob.size or not 0 < len(piece) <= limit:
                part.unlink()
                raise NodeError(f"the node's file is not of the {blob.size} bytes that it announced")
            running.update(piece)
            write_all(file.fileno(), piece)
            came += len(piece)
            if len(piece) < limit:
                raise ConnectionLost("the line broke")
    if running.hexdigest() == blob.digest:
        part.rename(target)
        return
    part.unlink()
    if began == 0:
        raise NodeError("the file's bytes are not those that were announced")
    fetch(begin, blob, target, ahead=ahead, block=block)  # what was here before was not the beginning of this


def _put_in_order(connection: Connection, blob: Blob, source: Path, offset: int) -> int:
    began = offset
    waiting: deque[Waiter] = deque()
    with source.open("rb", buffering=0) as file:
        while True:
            block = _block(file, blob, offset, connection.block)
            waiting.append(connection.begin("put", block, digest=blob.digest, size=blob.size, offset=offset))
            offset += len(block)
            while len(waiting) >= AHEAD or (waiting and offset == blob.size):
                if waiting.popleft()()[0].get("whole") is True:
                    return offset - began
            if offset == blob.size:
                raise NodeError("the agent does not see that the blob is whole")


def _put_blocks(connection: Connection, blob: Blob, source: Path, *, lines: int) -> int:
    """Send what is missing of a blob in blocks, each line taking the next one that nobody sends yet."""
    stand = _stand(connection.ask("split", digest=blob.digest, size=blob.size), blob)
    if not isinstance(stand, list):
        return 0
    blocks = deque(stand)

    def carry(line: Connection) -> int:
        numbers: deque[int] = deque()
        answers: deque[Waiter] = deque()
        sent = 0
        try:
            with source.open("rb", buffering=0) as file:
                while blocks or numbers:
                    if blocks and len(numbers) < AHEAD:
                        with suppress(IndexError):  # another line was faster
                            numbers.append(blocks.popleft())
                            offset = numbers[-1] * BLOCK
                            block = _block(file, blob, offset, BLOCK)
                            answers.append(line.begin("put", block, digest=blob.digest, offset=offset, block=True))
                            sent += len(block)
                    else:
                        if answers[0]()[0].get("whole") is True:  # another coordinator was faster
                            blocks.clear()
                        answers.popleft()
                        numbers.popleft()
        except ConnectionLost:
            blocks.extend(numbers)
        except BaseException:
            blocks.clear()
            raise
        return sent

    def carry_too(_: int) -> int:
        try:
            twin = connection.twin()
        except NodeError:  # the server wants no more sessions
            return 0
        try:
            return carry(twin)
        finally:
            twin.close()

    with ThreadPoolExecutor(lines) as pool:
        others = [pool.submit(carry_too, number) for number in range(1, lines)]
        sent = carry(connection) + sum(other.result() for other in others)
    if blocks:
        raise ConnectionLost("the line broke")
    if connection.ask("seal", digest=blob.digest).get("whole") is not True:
        raise NodeError("the agent does not see that the blob is whole")
    return sent


def _block(file: FileIO, blob: Blob, offset: int, most: int) -> bytes:
    block = os.pread(file.fileno(), min(most, blob.size - offset), offset)
    if len(block) < min(most, blob.size - offset):
        raise NodeError(f"{file.name!s} is shorter than it should be")
    return block


def _stand(answer: Mapping[str, Any], blob: Blob) -> int | list[int] | None:
    """How much of a blob is there: None for all, its first bytes, or all but the blocks of these numbers."""
    count = -(-blob.size // BLOCK)
    match answer.get("blobs", {blob.digest: answer}):
        case {blob.digest: {"whole": True}}:
            return None
        case {blob.digest: {"missing": list(spans)}}:
            with suppress(TypeError, ValueError):
                # No more spans than blocks, and each block once: a node may say anything.
                return sorted(
                    {number for begin, end in spans[:count] for number in range(max(0, begin), min(end, count))}
                )
        case {blob.digest: {"whole": False, "size": int(size)}}:
            return max(0, min(size, blob.size))
    raise NodeError("the agent's answer to `stat` is not one")


def _part(blob: Blob, target: Path) -> Path:
    return target.with_name(f".{target.name}.{blob.digest[:12]}.part")
