"""What a training's processes are held to by the system: processors, memory, GPUs, sizes of files, no network, a fence.

All of it needs no rights of an administrator. Without a network, a worker is in a network namespace of its own, whose
only interface is its loopback. What a machine cannot do is told, and then no training starts: `unable`.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional

from fedctl.node.owner.fence import Fence, landlock
from fedctl.node.owner.terms import Limits
from fedctl.node.owner.wording import size

NEW_USERS, NEW_NETWORK = 0x10000000, 0x40000000  # CLONE_NEWUSER and CLONE_NEWNET of Linux
SET_FLAGS = 0x8914  # SIOCSIFFLAGS
UP = 0x1  # IFF_UP
BLOCK = 512  # bytes, as st_blocks counts them


class Confined(NamedTuple):
    """A command, what goes into its environment, and what its process does before it becomes that command."""

    command: List[str]
    environment: Dict[str, str]
    prepare: Optional[Callable[[], None]]


def confined(command: List[str], limits: Limits, network: str, fence: Optional[Fence] = None) -> Confined:
    """The command so that it, and whatever it starts, is held to the limits, and to a fence where there is one."""
    environment = {}
    if limits.gpus is not None:
        numbers = ",".join(map(str, limits.gpus))
        environment = {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": numbers,
            "HIP_VISIBLE_DEVICES": numbers,
        }

    def prepare() -> None:
        import resource

        if limits.cpus is not None:
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: limits.cpus])
        # Of all limits of memory it is the one that counts what a process has asked for and may fill: what it has
        # merely mapped, as torch does with its libraries and CUDA with all of a GPU, is not in it.
        for kind, limit in ((resource.RLIMIT_DATA, limits.memory), (resource.RLIMIT_FSIZE, limits.disk)):
            if limit is not None:
                resource.setrlimit(kind, (limit, limit))
        if network == "none":
            leave_network()
        if fence is not None:
            fence.close()

    is_held = network == "none" or any(one is not None for one in (limits.cpus, limits.memory, limits.disk, fence))
    return Confined(list(command), environment, prepare if is_held else None)


def leave_network() -> None:
    """Take this process out of the machine's network for good; raises OSError where it may not.

    The namespace of users that comes with it keeps the account's number, and gives it no right to go back.
    """
    import ctypes
    import fcntl
    import socket
    import struct

    user, group = os.geteuid(), os.getegid()
    unshare = getattr(ctypes.CDLL(None, use_errno=True), "unshare", None)
    if unshare is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if unshare(NEW_USERS | NEW_NETWORK):
        number = ctypes.get_errno()
        # The kernel's bound on their number counts as a full disk.
        raise OSError(number, "no more user namespaces" if number == errno.ENOSPC else os.strerror(number))
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        Path("/proc/self", name).write_text(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sH14x", b"lo", UP))


def unable(limits: Limits, network: str, files: str = "any") -> List[str]:
    """What this machine cannot hold a training to, a sentence each; empty where it can hold it to everything."""
    found = []
    if sys.platform != "linux":
        named = {"cpus": limits.cpus, "memory": limits.memory, "gpus": limits.gpus}
        found = [
            f"limits/{name}: {sys.platform} cannot be told to hold it" for name, one in named.items() if one is not None
        ]
    if network == "none":
        trouble = _trouble(leave_network)
        if trouble:
            found.append(
                f"network: this machine does not let this account take the network from a process ({trouble}): ask its "
                "administrator to allow user namespaces, or say `network: any` and close its network otherwise"
            )
    if files == "own":
        try:
            landlock()
        except OSError as error:
            found.append(
                f"files: this machine cannot fence a process in ({error.strerror}): it takes a Linux of 5.13 or newer "
                "with Landlock; ask its administrator, or say `files: any`"
            )
    return found


def _trouble(attempt: Callable[[], None]) -> str:
    """Why an attempt fails in a process of its own; empty where it does not."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            attempt()
        except BaseException as error:  # a fork must never return into its parent's code
            os.write(writing, str(getattr(error, "strerror", None) or error).encode()[:500])
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        trouble = said.read().decode(errors="replace")
    os.waitpid(child, 0)
    return trouble


def full(limits: Limits, used: int, coming: int = 0) -> Optional[str]:
    """Why so many bytes more may not come where so many are used; None where they may."""
    if limits.disk is None or used + coming <= limits.disk:
        return None
    return (
        f"the owner of this node allows {size(limits.disk)} of disk, of which {used // 2**20}M are used: remove what "
        "old runs left with `fedctl clean --nodes`"
    )


def used_by(folder: Path) -> int:
    """Bytes of disk that a folder takes, as far as it may be read."""
    total = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    try:
                        total += entry.stat(follow_symlinks=False).st_blocks * BLOCK
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                    except OSError:  # it is gone
                        continue
        except OSError:
            continue
    return total
