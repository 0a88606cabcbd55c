"""What a node's answers mean: a finding each, and the remedy where one did not pass. Asks nothing of anybody.

What a node says is believed only as far as its type; the views make its text safe.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedctl.environment import Environment, Given, allowed_instead, differences, is_recent, missing, version_here
from fedctl.errors import ConnectionLost, HostKeyError, LoginError, NodeError, Unreachable
from fedctl.federation import Node

LEAST_MEMORY = 2 << 30
SPARE_DISK = 1 << 29
"""What is left for logs, for the system, and for what torch keeps."""
MOST_SKEW_S = 5.0
STAGES = {"name": "found", "network": "answers", "host key": "known", "login": "accepted"}
"""What lies between here and the agent of a node over SSH, in this order, and the word for each that was passed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    `remedy` says what to do where it did not pass, `note` what is worth to know where it did; `mark` is the finding in
    a word.
    """

    name: str
    passed: bool
    value: str
    remedy: str = ""
    note: str = ""
    mark: str = "ok"


def unreached(node: Node, error: NodeError) -> Iterator[Finding]:
    """How far the way to a node's agent goes."""
    broken = _stage(error)
    if node.host == "local":
        yield Finding(name="reach", passed=False, value=error.message, remedy=error.hint or _agent_remedy(node, error))
        return
    for stage, word in STAGES.items():
        if stage == broken:
            remedy = error.hint or _way_remedy(node, stage)
            yield Finding(name=stage, passed=False, value=error.message, remedy=remedy)
            return
        yield Finding(name=stage, passed=True, value=word)
    yield Finding(name="agent", passed=False, value=error.message, remedy=error.hint or _agent_remedy(node, error))


def reached(node: Node, facts: Mapping[str, Any], noise: str) -> Iterator[Finding]:
    """The way to a node's agent, and what its machine is called."""
    machine = f"{text(facts, 'hostname')}, {text(facts, 'system')}, Python {text(facts, 'python')}"
    if node.host == "local":
        yield Finding(name="reach", passed=True, value=machine)
        return
    words = {**STAGES, "login": f"as {text(facts, 'user')}"}
    yield from (Finding(name=stage, passed=True, value=word) for stage, word in words.items())
    note = f"the shell there says {noise.strip().splitlines()[0][:60]!r} first; it is skipped" if noise.strip() else ""
    yield Finding(name="agent", passed=True, value=machine, note=note)
    is_forced = facts.get("forced") is True
    yield Finding(name="forced command", passed=True, value="yes, to the agent" if is_forced else "no")


def python(node: Node, environment: Environment | Given | None, stand: Mapping[str, Any]) -> Iterator[Finding]:
    """The Python that tasks would run in, and its packages; `stand` is what the agent says of it."""
    match environment, stand:
        case Environment(), {"environment": {"version": str(version), "ready": bool(is_ready)}}:
            how = "made by fedctl" if is_ready else "not made yet"
            note = "" if is_ready else "`fedctl provision` makes the Python environment"
            yield Finding(name="python", passed=True, value=f"{version}, {how}", note=note, mark=version)
            yield Finding(
                name="packages", passed=True, value="as on the coordinator" if is_ready else "to be installed"
            )
        case _, {"python": {"python": str(version), "packages": dict(packages)}}:
            how = f"as given: {node.python}" if node.python else "the coordinator's own"
            yield Finding(
                name="python",
                passed=is_recent(version),
                value=f"{version}, {how}",
                remedy="tasks need Python 3.10 or newer: name one in `python:` of this node",
                mark=version,
            )
            yield _packages(node, packages)
        case _:
            remedy = allowed_instead(stand) or (
                "correct `python:` of this node"
                if node.python
                else "install python3.11 or uv there, or name a Python of 3.10 or newer in `python:`"
            )
            yield Finding(name="python", passed=False, value=text(stand, "error"), remedy=remedy)


def room(facts: Mapping[str, Any], needed: int, environment: int) -> Iterator[Finding]:
    """Disk and memory; `needed` is the run's in bytes, and what of it is for an `environment` to be made."""
    free, memory, available = (number(facts, name) for name in ("disk_free", "memory", "memory_available"))
    making = f", {gigabytes(environment)} of it for the environment" if environment else ""
    yield Finding(
        name="disk",
        passed=free >= needed + SPARE_DISK,
        value=f"{gigabytes(free)} free, {gigabytes(needed + SPARE_DISK)} needed{making}",
        remedy=f"make room below {text(facts, 'home')}, or name another place in `home:`",
        mark=gigabytes(free),
    )
    yield Finding(
        name="memory",
        passed=memory >= LEAST_MEMORY,
        value=", ".join(
            [
                gigabytes(memory),
                *([f"{gigabytes(available)} available"] if available else []),
                f"{number(facts, 'cpus'):.0f} cores",
            ]
        ),
        remedy="torch and Lightning want 2 GB at least",
        mark=gigabytes(memory),
    )


def accelerator(node: Node, facts: Mapping[str, Any], answer: Mapping[str, Any]) -> Finding:
    """What the node will train on; `answer` is what nvidia-smi, and perhaps torch, says there."""
    cards, torch = _cards(answer), _torch(answer)
    gpus = [name for name, _, _ in cards] if torch is None else torch[0]
    is_mac = text(facts, "system").startswith("Darwin") and text(facts, "system").endswith("arm64")
    count = {"gpu": len(gpus), "mps": int(is_mac if torch is None else torch[1]), "cpu": 1}
    choices = {"auto": ("mps", "gpu", "cpu"), "gpu": ("mps", "gpu")}.get(node.accelerator, (node.accelerator,))
    choice = next((choice for choice in choices if count[choice]), None)
    trouble = text(answer, "trouble").strip().splitlines()[-1:]
    blind = ["nvidia-smi shows a GPU that the torch there does not see"] if cards and not gpus else []
    note = "; ".join([*blind, *trouble])
    if choice is None:
        return Finding(
            name="accelerator",
            passed=False,
            value=f"no {node.accelerator} is there" + (f": {note}" if note else ""),
            remedy="`accelerator: auto` takes what is there"
            + ("; or install a torch that is built for the GPU" if blind else ""),
        )
    wanted = node.devices if isinstance(node.devices, int) else count[choice]
    if choice != "cpu" and wanted > count[choice]:
        return Finding(
            name="accelerator",
            passed=False,
            value=f"{count[choice]} of the {wanted} devices that are asked for",
            remedy=f"`devices: {count[choice]}`, or `auto`, takes what is there",
        )
    named = {"gpu": _described(gpus, cards), "mps": "Apple's GPU", "cpu": "no GPU is used"}[choice]
    mark = f"{wanted} gpu" if choice == "gpu" and wanted > 1 else choice
    return Finding(name="accelerator", passed=True, value=f"{choice}: {named}", note=note, mark=mark)


def clock(skew_s: float) -> Finding:
    return Finding(
        name="clock",
        passed=abs(skew_s) <= MOST_SKEW_S,
        value="in step" if abs(skew_s) < 1 else f"{skew_s:+.0f} s",
        remedy="let the node keep its clock by NTP; fedctl itself counts on the coordinator's alone",
        mark="ok" if abs(skew_s) < 1 else f"{skew_s:+.0f} s",
    )


def when(answer: Mapping[str, Any]) -> Finding:
    """Whether the node may be used now; a "no" is its owner's word, and nothing to be mended."""
    match answer:
        case {"may": True}:
            return Finding(name="when", passed=True, value="may be used now", mark="now")
        case {"may": False, "why": str(why)}:
            return Finding(name="when", passed=True, value="not now", note=f"not to be used now: {why}", mark="later")
        case _:
            return Finding(
                name="when",
                passed=False,
                value=text(answer, "error"),
                remedy="correct `when:` of this node, or its owner's command there",
            )


def trial(answer: Mapping[str, Any], remedy: str | None = None) -> Finding:
    """Whether the user's code could be imported there; `remedy` is for a failure whose cause is known here."""
    match answer:
        case {"present": True, "failure": None}:
            return Finding(name="import", passed=True, value="your code can be imported")
        case {"present": True, "failure": str(failure)}:
            remedy = (
                remedy or "it runs on the coordinator: name what it needs in requirements.txt, then `fedctl provision`"
            )
            return Finding(name="import", passed=False, value=failure, remedy=remedy)
        case _:
            note = "your code is not there yet; `fedctl provision` brings it"
            return Finding(name="import", passed=True, value="not there yet", note=note, mark="later")


def gigabytes(size: float) -> str:
    return f"{size / 1e9:.0f} GB" if size >= 9.95e9 else f"{size / 1e9:.1f} GB"


def number(facts: Mapping[str, Any], name: str) -> float:
    """A figure of a node's, 0 where it is none."""
    value = facts.get(name)
    return float(value) if isinstance(value, int | float) and 0 <= value < 2**63 else 0.0


def text(facts: Mapping[str, Any], name: str) -> str:
    """A word of a node's, empty where it is none."""
    value = facts.get(name)
    return value[:1000] if isinstance(value, str) else ""


def _cards(answer: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Name, memory in MiB and driver of each GPU that nvidia-smi shows."""
    found = answer.get("gpus")
    cards = [card for card in found if isinstance(card, Mapping)] if isinstance(found, list) else []
    return [(text(card, "name"), text(card, "memory"), text(card, "driver")) for card in cards]


def _torch(answer: Mapping[str, Any]) -> tuple[list[str], bool] | None:
    """The GPUs that torch sees, and whether it can use a Mac's; None where it was not asked."""
    match answer.get("torch"):
        case {"gpus": list(gpus), "mps": bool(mps)}:
            return [str(gpu) for gpu in gpus], mps
        case _:
            return None


def _described(gpus: Sequence[str], cards: Sequence[tuple[str, str, str]]) -> str:
    """`2 x NVIDIA H200, 150 GB each, driver 570.1`."""
    kinds = [f"{gpus.count(name)} x {name}" if gpus.count(name) > 1 else name for name in dict.fromkeys(gpus)]
    memories = {gigabytes(float(memory) * 2**20) for _, memory, _ in cards if memory.isdecimal()}
    drivers = {driver for _, _, driver in cards if driver}
    each = " each" if len(gpus) > 1 else ""
    return ", ".join([*kinds, *(f"{memory}{each}" for memory in sorted(memories)), *(f"driver {d}" for d in drivers)])


def _stage(error: NodeError) -> str:
    match error:
        case Unreachable(stage="name"):
            return "name"
        case Unreachable():
            return "network"
        case HostKeyError():
            return "host key"
        case LoginError():
            return "login"
        case _:
            return "agent"


def _way_remedy(node: Node, stage: str) -> str:
    match stage:
        case "name":
            return "correct `host:` of this node, or make it an alias in ~/.ssh/config"
        case "network":
            return f"is the machine on, and does its SSH server listen there? try `ssh {node.host} true`"
        case "host key":
            return "`fedctl check --accept-new` shows the keys that are new, and asks"
        case _:
            return "add your public key to ~/.ssh/authorized_keys there, or correct `user:` and `key:` of this node"


def _agent_remedy(node: Node, error: NodeError) -> str:
    if isinstance(error, ConnectionLost):
        return f"try again; if it stays so, try `ssh {node.host} true`"
    return f"does `{node.python or 'python3'} -V` run on {node.host}?"


def _packages(node: Node, packages: Mapping[str, Any]) -> Finding:
    lacking, present = (
        missing(packages),
        ", ".join(f"{name} {version}" for name, version in packages.items() if version),
    )
    wanted = " ".join(f"{name}=={version_here(name)}" if version_here(name) else name for name in lacking)
    return Finding(
        name="packages",
        passed=not lacking,
        value=present if not lacking else f"without {', '.join(lacking)}",
        remedy=f"`{node.python or 'python'} -m pip install {wanted}` there",
        note="; ".join(differences(packages)),
    )
