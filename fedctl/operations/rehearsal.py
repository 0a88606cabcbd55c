"""A rehearsal: the federation's first model, built through a real agent and worker in a folder that is then removed."""

import contextlib
import hashlib
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from fedctl import bundle
from fedctl.actions import Perform
from fedctl.errors import NodeError
from fedctl.events import ModelInitialized, TaskFailed
from fedctl.federation import Federation
from fedctl.forecast import Sizes
from fedctl.host import Host, Work
from fedctl.jobs import perform
from fedctl.records import COORDINATOR, Blob, TaskKey
from fedctl.rundir import RunDir
from fedctl.sizes import first_sizes
from fedctl.transports.local import LocalTransport


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstModel:
    """What the federation shares of the first model, the rest of it (None: nothing), and what they are on the line."""

    model: Blob
    rest: Blob | None
    sizes: Sizes

    @property
    def size(self) -> int:
        """Bytes of both."""
        return self.model.size + (self.rest.size if self.rest else 0)


def rehearse(federation: Federation, *, controls: bool = False) -> FirstModel:
    """The first model's size and digest, and with `controls` that these go beside it on the line.

    Raises ConfigError when the user's code cannot be used.
    """
    with tempfile.TemporaryDirectory(prefix="fedctl-") as place:
        run = RunDir(Path(place) / "run")
        run.path.mkdir()
        content = bundle.pack(federation)
        run.bundle.write_bytes(content)
        work = Work(
            run="rehearsal",
            identity="rehearsal",
            bundle=Blob(digest=hashlib.sha256(content).hexdigest(), size=len(content)),
            bundle_path=run.bundle,
            preload=bundle.preload(federation),
            cwd=str(federation.folder),
        )
        host = Host(LocalTransport(home=f"{place}/home"), python=sys.executable, slots=1, work=work)
        try:
            event = perform(
                Perform(task=TaskKey(round=0, node=COORDINATOR, kind="initialize")),
                federation=federation,
                host=host,
                run=run,
                clock=lambda: datetime.now(UTC),
                tell=lambda _: None,
                progressed=lambda _: None,
            )
        finally:
            with contextlib.suppress(NodeError):
                host.stop()
            host.close()
        match event:
            case ModelInitialized(model=model, rest=rest):
                return FirstModel(model=model, rest=rest, sizes=first_sizes(run, federation, model, controls=controls))
            case TaskFailed(reason=reason):
                raise NodeError(f"the first model could not be built: {reason}", hint="`fedctl check` tries it again")
            case _:
                raise AssertionError(event)
