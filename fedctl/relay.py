"""The coordinator's part in secure aggregation: it passes on what nodes say to each other, and sums what they mask.

What a node says is checked and lies in the run's folder before it is journalled; what the next step is told is made of
these files and of the journal's word on who has done each step, so it is the same after a crash.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedctl.durable import write_atomically
from fedctl.errors import ModelError, ProtocolError
from fedctl.federation import Federation
from fedctl.privacy import SecureAggregation
from fedctl.records import Blob, Kind, Task, TaskKey
from fedctl.rundir import RunDir
from fedctl.secure import degree_of
from fedctl.share import Share
from fedctl.terms import terms_of

if TYPE_CHECKING:
    from fedctl.masked import Layout
    from fedctl.secagg.messages import Cohort, Sealed

_ROOM = 4.0
"""Times as far as a tensor's mean moved in the round before, the updates of the next may go."""
_WEIGHTIEST = 4
"""In a narrow row, how many times the mean number of examples one update may count for."""
Steps = Mapping[Kind, tuple[str, ...]]


def message(run: RunDir, key: TaskKey, steps: Steps, federation: Federation) -> dict[str, Any]:
    """What a node is told in a step; raises ModelError where what the others said does not go together."""
    try:
        return _message(run, key, steps, federation)
    except (ValueError, OSError) as error:
        raise ModelError(f"what the nodes said does not go together: {error}") from error


def _message(run: RunDir, key: TaskKey, steps: Steps, federation: Federation) -> dict[str, Any]:
    from fedctl.secagg import coordinator
    from fedctl.secagg.messages import Agreement, Survivors

    secure = _secure(federation)
    match key.kind:
        case "shares":
            return {"cohort": _cohort(run, key.round, steps, secure).to_json()}
        case "train":
            cohort = _cohort(run, key.round, steps, secure)
            sealed = _sealed(run.path, key.round, steps["shares"])
            layout = layout_of(run, key.round, steps, federation)
            inbox = coordinator.inbox_of(cohort, key.node, sealed).to_json()
            return {"inbox": inbox, "ranges": layout.ranges, "most": layout.most}
        case "agree":
            return {"survivors": Survivors(nodes=tuple(sorted(steps["train"]))).to_json()}
        case "unmask":
            signatures = _signatures(run, key.round, steps)
            return {"agreement": Agreement(nodes=steps["train"], signatures=signatures).to_json()}
        case _:
            return {}


def take(run: RunDir, key: TaskKey, steps: Steps, federation: Federation, said: Any) -> Blob:
    """Check what a node says in a step, and keep it; raises ProtocolError where it is not what it should be."""
    from fedctl.secagg import coordinator

    try:
        if key.kind == "keys":
            advert = coordinator.check_advert(said, _identity(run), key.round, key.node)
            _check_alone(run, key, advert.identity)
        else:
            cohort = _cohort(run, key.round, steps, _secure(federation))
            match key.kind:
                case "shares":
                    coordinator.check_sealed(said, cohort, key.node)
                case "agree":
                    coordinator.check_signed(said, cohort, key.node, steps["shares"], steps["train"])
                case _:
                    coordinator.check_revealed(said, cohort, key.node, steps["shares"], steps["train"])
    except (ValueError, OSError) as error:
        raise ProtocolError(f"what it says in the step `{key.kind}` is not in order: {error}") from error
    path = run.said(key.round, key.kind, key.node)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, json.dumps(said).encode())


def layout_of(run: RunDir, number: int, steps: Steps, federation: Federation) -> "Layout":
    """The layout of a round's rows: a narrow one needs a round before it, whose mean says how far tensors move."""
    secure, by_node = _secure(federation), federation.privacy.is_counted_by_node
    nodes = len(steps["keys"])
    most = 1 if by_node else secure.examples
    if not federation.codec.up or not run.mean(number - 1).exists():  # there is none of a round that was abandoned
        return _layout(run.path, number, nodes, secure.range, most, federation.share, is_narrow=False)
    if not by_node:
        from fedctl.header import read_header

        told = read_header(run.mean(number - 1)).metadata
        most = min(most, _WEIGHTIEST * -(-int(told["counted"]) // int(told["nodes"])))
    return _layout(run.path, number, nodes, secure.range, most, federation.share, is_narrow=True)


def agree_on_terms(run: RunDir, task: Task) -> None:
    """Write down what a round's trainings have in common, which its masks are made of."""
    path = run.terms(task.key.round, task.key.node)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, terms_of(task, run.facts()["bundle"]))


def _terms(run: RunDir, number: int, nodes: Sequence[str]) -> bytes:
    """What these nodes were told; raises ValueError where that was not the same."""
    found = {run.terms(number, name).read_bytes() for name in nodes}
    if len(found) != 1:
        raise ValueError("the nodes were not told the same")
    return found.pop()


def _check_alone(run: RunDir, key: TaskKey, identity: bytes) -> None:
    """Raises ValueError where another node of the round has that identity: both are on one account, or one lies."""
    from fedctl.secagg.messages import Advert

    for path in run.said(key.round, key.kind, key.node).parent.glob("*.json"):
        if path.stem != key.node and Advert.from_json(json.loads(path.read_bytes())).identity == identity:
            raise ValueError(f"it has the identity of {path.stem}: each node needs an account of its own")


def unmask(run: RunDir, number: int, steps: Steps, federation: Federation) -> tuple[Path, int, float]:
    """Write the mean of the round's updates, as an update of its own; say how much it counts, and what rounding added.

    It counts for its examples, or for its nodes where each counts alike; rounding may have made an update longer by so
    much. Raises ModelError where too few shares came, or a file is damaged.
    """
    from fedctl.division import due
    from fedctl.masked import VECTOR, moved
    from fedctl.secagg import coordinator
    from fedctl.secagg.messages import Revealed
    from fedctl.weights import Weights, save

    survivors = sorted(steps["train"])
    cohort = _cohort(run, number, steps, _secure(federation))
    layout = layout_of(run, number, steps, federation)
    answered = [name for name in steps["agree"] if run.said(number, "unmask", name).exists()]
    try:
        total = coordinator.unmask_sum(
            cohort,
            steps["shares"],
            survivors,
            (Weights.open(run.update(number, name))[VECTOR].numpy() for name in survivors),
            {name: Revealed.from_json(_said(run, number, "unmask", name)) for name in answered},
            _terms(run, number, survivors),
        )
    except (ValueError, OSError) as error:
        raise ModelError(f"the masks do not come off: {error}") from error
    ways, counted = layout.decode(total)
    if not counted:
        raise ModelError("the nodes' updates count for no example")
    mean = {name: way * (layout.most / counted) for name, way in ways.items()}
    base = due(Weights.open(run.round_model(number - 1)), federation.share, number)
    told = {"counted": str(counted), "nodes": str(len(survivors))}
    save(run.mean(number), moved(base, base.spec, mean), told)
    return run.mean(number), counted, layout.rounding


@lru_cache(maxsize=2)
def _layout(path: Path, number: int, nodes: int, range: float, most: int, share: Share, *, is_narrow: bool) -> "Layout":
    """Every node of a round is told the same."""
    from fedctl.division import due
    from fedctl.masked import Layout
    from fedctl.weights import Weights

    run = RunDir(path)
    base = due(Weights.open(run.round_model(number - 1)), share, number)
    layout = Layout(spec=base.spec, cohort=nodes, range=range, most=most)
    if not is_narrow:
        return layout
    before = Weights.open(run.round_model(number - 2))
    far = {name: float((base[name].double() - before[name].double()).abs().max()) for name in layout.names}
    farthest = max(far.values(), default=0.0)
    if not farthest:
        return layout
    ranges = {name: _ROOM * (one or farthest) for name, one in far.items()}
    return Layout(spec=base.spec, cohort=nodes, range=range, most=most, ranges=ranges)


def _signatures(run: RunDir, number: int, steps: Steps) -> dict[str, bytes]:
    from fedctl.secagg.messages import Signed

    return {name: Signed.from_json(_said(run, number, "agree", name)).signature for name in steps["agree"]}


def _said(run: RunDir, number: int, step: Kind, node: str) -> Any:
    return json.loads(run.said(number, step, node).read_bytes())


def _secure(federation: Federation) -> SecureAggregation:
    secure = federation.privacy.secure_aggregation
    if secure is None:
        raise AssertionError("asked for what is masked in a run without masks")
    return secure


def _identity(run: RunDir) -> str:
    return str(run.facts()["identity"])


def _cohort(run: RunDir, number: int, steps: Steps, secure: SecureAggregation) -> "Cohort":
    return _cohort_of(run.path, number, tuple(steps["keys"]), secure)


@lru_cache(maxsize=2)
def _cohort_of(path: Path, number: int, nodes: tuple[str, ...], secure: SecureAggregation) -> "Cohort":
    """Every node of a round is told the same."""
    from fedctl.secagg.coordinator import cohort_of
    from fedctl.secagg.messages import Advert

    run = RunDir(path)
    adverts = [Advert.from_json(_said(run, number, "keys", name)) for name in nodes]
    degree = degree_of(secure, len(nodes))
    return cohort_of(_identity(run), number, adverts, share=secure.threshold, degree=degree)


@lru_cache(maxsize=2)
def _sealed(path: Path, number: int, nodes: tuple[str, ...]) -> "Mapping[str, Sealed]":
    from fedctl.secagg.messages import Sealed

    return {name: Sealed.from_json(_said(RunDir(path), number, "shares", name)) for name in nodes}
