"""The guard: an agent that asks its owner's policy before it does what a coordinator's key asks for.

Verbs that are not named here do not exist for that key. What is not in line with the policy is refused by name; what
waits for the owner, or for an hour, is declined, so that the run goes on elsewhere and asks again. Each key has a home
of its own: it can name no run, model or environment of another.
"""

from __future__ import annotations

import time
from contextlib import nullcontext

import fedctl
from fedctl.node import agent
from fedctl.node.agent import MOST_PATHS, Agent, Ledger, Refused, discard, parse
from fedctl.node.owner import bounds, departure, identity, rules
from fedctl.node.owner.approvals import Approvals
from fedctl.node.owner.bounds import Room, awaiting, forbid
from fedctl.node.owner.current import Current
from fedctl.node.owner.errors import OwnerError
from fedctl.node.owner.place import Enrolled, Place
from fedctl.node.owner.terms import Policy
from fedctl.node.owner.trainings import Trainings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from io import FileIO
    from pathlib import Path
    from typing import Callable, List, Optional

    from fedctl.node.agent import Confined, Header, Run, Slice, Watch

LOOKS = frozenset(("hello", "may", "probe", "accelerators", "look", "trial", "ledger", "list"))
BRINGS = frozenset(("stat", "put", "split", "seal", "unpack", "environment"))
WORKS = frozenset(("worker", "start", "read", "cancel", "stop", "release", "remove", "stop_all", "remove_all"))


class Guard(Agent):
    """Answers one enrolled key, as far as the policy goes, which is read again whenever it has changed."""

    def __init__(self, place: Place, key: Enrolled, send: Callable[[Header, bytes | Slice], None]) -> None:
        self.place = place
        self.key = key
        self.approvals = Approvals(place.folder)
        self.trainings = Trainings(place.trainings)
        self.room = Room(key.home)
        self.wanted: Optional[Header] = None
        self.current = Current(place.policy)
        super().__init__(key.home, send)

    def builder(self) -> Path:
        """The owner's own copy: packages are installed by nothing that a coordinator sends."""
        return self.place.program / "fedctl" / "node" / "environment.py"

    def open_ledger(self) -> Ledger:
        """The owner's, which lies outside of the home: no request can touch it."""
        return Ledger(self.place.ledger, to=self.key.fingerprint, is_durable=True)

    @property
    def policy(self) -> Policy:
        return self.current.policy

    @property
    def is_revoked(self) -> bool:
        return not self.place.record(self.key.fingerprint).exists()

    def look(self) -> None:
        if self.is_revoked:
            raise SystemExit(1)  # `revoke` ends this machine's processes, not those of others that share the folder
        super().look()

    def operation(self, name: object) -> Callable[[Header], Header | None]:
        if self.is_revoked:
            raise Refused("this key was revoked by the owner of this node")
        if not isinstance(name, str) or name not in LOOKS | BRINGS | WORKS:
            raise Refused(f"the owner of this node does not allow {str(name)[:40]!r}")
        operation = super().operation(name)

        def checked(header: Header) -> Header | None:
            identity = header.get("identity")
            if identity is not None and not (isinstance(identity, str) and agent.RUN.match(identity)):
                raise Refused(f"not a run's identity: {identity!r}")
            try:
                return operation(header)
            except OwnerError as error:
                raise Refused(error.message) from None

        return checked

    # What is here

    def do_hello(self, header: Header) -> Header:
        return {
            **super().do_hello(header),
            "enrolled": True,
            "version": fedctl.__version__,
            "agent": self.place.version().partition(" ")[2],
            "identity": identity.fingerprint(self.place),
            "required": self.policy.required,
        }

    def stand(self, needs: Header) -> Header:
        """With what the owner has still to approve, by kind: a digest, and whether it was shown to them yet."""
        stand, self.wanted = super().stand(needs), needs.get("environment")
        awaited, shown = [], {asked.digest for asked in self.approvals.pending()}
        if rules.refused_code(self.policy, needs["bundle"], self.approvals):
            awaited.append({"kind": "code", "digest": needs["bundle"], "shown": needs["bundle"] in shown})
            stand["bundle"] = False
        digest = (stand.get("environment") or {}).get("digest")
        why = rules.refused_environment(self.policy, digest, self.approvals) if digest else None
        if why and self.policy.environments != "approve":
            stand.update(error=why, pythons=list(self.policy.pythons))
        elif why:
            awaited.append({"kind": "environment", "digest": digest, "shown": digest in shown})
        return {**stand, "awaited": awaited}

    def do_probe(self, header: Header) -> Header:
        python = bounds.python(self.policy, header["python"])
        return super().do_probe({"python": python, "packages": bounds.names(header["packages"])})

    def do_accelerators(self, header: Header) -> Header:
        return super().do_accelerators({"wanted": header["wanted"] is True, **self.interpreter_of(header)})

    def do_look(self, header: Header) -> Header:
        """Of a path that tasks may not name nothing is told, but that."""
        paths = [str(path)[:4096] for path in header["paths"][:MOST_PATHS]]
        forbidden = [path for path in paths if rules.refused_paths(self.policy, [path])]
        found = iter(super().do_look({"paths": [path for path in paths if path not in forbidden]})["found"])
        hidden = {"exists": False, "readable": False, "forbidden": True}
        return {"found": [hidden if path in forbidden else next(found) for path in paths]}

    def do_trial(self, header: Header) -> Header:
        bundle, modules = self.home / "bundle" / self.blobs.path(header["bundle"]).name, bounds.names(header["modules"])
        if not bundle.is_dir() or rules.refused_code(self.policy, bundle.name, self.approvals):
            return {"present": False}
        forbid(rules.refused_modules(modules, bundle))
        bounds.forbid_unable(self.policy)
        tried = super().do_trial({"bundle": bundle.name, "modules": modules, **self.interpreter_of(header)})
        return {
            **tried,
            "failure": tried.get("failure") and departure.allowed_error(self.policy, str(tried["failure"])),
        }

    def output_of_trial(self, command: List[str]) -> bytes:
        return agent.output_of(command, agent.IMPORT_S, confine=self.confine)

    def interpreter_of(self, header: Header) -> Header:
        return bounds.interpreter(self.policy, self.approvals, header)

    def do_may(self, header: Header) -> Header:
        forbid(rules.refused_command(self.policy, header["when"]["command"]))
        verdict = rules.closed(self.policy, time.localtime())
        return super().do_may(header) if verdict["may"] else verdict

    # What comes

    def do_put(self, header: Header) -> Header:
        self.room.take(self.policy, len(header["body"]))
        return super().do_put(header)

    def do_split(self, header: Header) -> Header:
        self.room.take(self.policy, int(header["size"]), is_announced=True)
        return super().do_split(header)

    def do_unpack(self, header: Header) -> Header:
        """Nothing is unpacked before the owner has seen it; they are shown it as it came."""
        digest = self.blobs.path(header["digest"]).name
        if rules.refused_code(self.policy, digest, self.approvals):
            if not self.blobs.verify(digest):
                return {"missing": [digest]}
            self.approvals.ask_code(digest, self.blobs.path(digest), self.asker)
            if self.wanted is not None:  # both can be approved at one sitting then
                self.awaited_environment(self.wanted)
            return awaiting("code", digest)
        return super().do_unpack(header)

    def do_environment(self, header: Header) -> Header:
        forbid(rules.refused_code(self.policy, header["bundle"], self.approvals))
        digest = self.awaited_environment(header["environment"])
        if digest:
            return awaiting("environment", digest)
        self.room.take(self.policy, 0)
        return super().do_environment(header)

    def awaited_environment(self, needs: Header) -> str:
        """The digest of an environment that its owner has still to approve, who is shown it; empty for one that may be.

        Raises Refused where none may be made.
        """
        digest = self.environments.find(needs)["digest"]
        why = rules.refused_environment(self.policy, digest, self.approvals)
        if why and self.policy.environments != "approve":
            raise Refused(why)
        if why:
            self.approvals.ask_environment(digest, needs, self.asker)
        return digest if why else ""

    @property
    def asker(self) -> str:
        return f"{self.key.fingerprint} {self.key.comment}".rstrip()

    # What is done

    def do_worker(self, header: Header) -> Header:
        verdict = rules.closed(self.policy, time.localtime())
        if not verdict["may"]:
            return {"declined": verdict}
        return super().do_worker({**header, "worker": self.worker_of(self.run(header), header["worker"])})

    def worker_of(self, run: Run, spec: Header) -> Header:
        return bounds.worker(self.policy, self.approvals, spec, run.path)

    def do_start(self, header: Header) -> Header:
        """A task that is here already was looked at as it came, and goes on as it came."""
        run, key = self.run(header), header["key"]
        folder, task, worker = run.folder(key), header["task"], self.worker_of(run, header["worker"])
        result = run.result(key)
        if result is not None and result.get("ask_again_s") is None:
            return super().do_start({**header, "worker": worker})
        try:
            task = parse((folder / "task.json").read_bytes()) if result is None else task
        except (OSError, ValueError):
            discard(folder)
        if task is header["task"]:
            verdict = rules.closed(self.policy, time.localtime())
            if not verdict["may"]:
                return {"declined": verdict}
            if task["key"] != key:
                raise Refused(f"the task of {key} is called {task['key']!r}")
            bundle = self.home / "bundle" / worker["bundle"]
            done = self.trainings.count(header["identity"], key)
            forbid(rules.refusal(self.policy, task, bundle=bundle, folder=run.path, trainings=done))
            self.room.take(self.policy, 0)
        header = {**header, "task": task, "worker": worker}
        with self.turn_of(header["identity"], run, key, task) as busy:
            return {"declined": {"may": False, "why": busy, "seconds": 0.0}} if busy else super().do_start(header)

    def begin(self, run: Run, key: str, watch: Watch) -> Header | None:
        with self.turn_of(run.owner()[0], run, key, watch.task) as busy:
            if busy:
                return {"push": "result", "result": {**agent.failed(key, busy, retryable=True), "ask_again_s": 0.0}}
            return super().begin(run, key, watch)

    def turn_of(self, identity: str, run: Run, key: str, task: Header) -> AbstractContextManager[str | None]:
        """The time in which a task may begin, a training being counted; tells what it has to wait for, if anything."""
        if key.rpartition("/")[2][:1] not in "asf":
            return nullcontext()
        is_private = self.policy.differential_privacy is not None and bool(task.get("privacy"))
        folder, most = run.folder(key), self.policy.rounds
        return self.trainings.turn(identity, key, folder, is_private=is_private, most=most)

    def owners_words(self, task: Header) -> Header | None:  # noqa: ARG002  the words are the same for all
        """What the worker has to keep to, as the owner's policy says it."""
        return bounds.words(self.policy, self.place, self.trainings.spent())

    def start_worker(self, run: Run, spec: Header) -> bool:
        """Start one by what is approved now, and within the policy's limits, or not at all."""
        forbid(rules.refused_worker(self.policy, spec, self.approvals))
        if run.worker_lives():
            return False
        bounds.forbid_unable(self.policy)
        return run.start_worker(self.home, spec, self.confine)

    def confine(self, command: List[str]) -> Confined:
        return bounds.confined(self.policy, command, self.home, self.place.shown)

    # What leaves

    def outgoing(self, run: Run, key: str, result: Header) -> Header:
        """A result without what may not leave; where its update may not, a failure that says so."""
        result = departure.allowed_words(self.policy, result)
        why = departure.leaving(self.policy, result, run.folder(key) / "update.safetensors")
        if why and result.get("error") is None:
            return agent.failed(key, why, retryable=False)
        self.trainings.note(run.owner()[0], key, result.get("privacy"))
        return result

    def outgoing_progress(self, progress: Header) -> Header:
        return departure.allowed_words(self.policy, progress)

    def do_read(self, header: Header) -> Header:
        forbid(departure.may_read(self.policy, header["name"]))
        return super().do_read(header)

    def check_piece(self, run: Run, key: str, name: str, file: FileIO) -> None:
        if name == "update.safetensors":
            result = run.result(key)
            if result is None:
                raise Refused(f"{key} has not ended yet")
            forbid(departure.file_leaving(self.policy, result, file))
            self.trainings.note(run.owner()[0], key, result.get("privacy"))

    def do_remove(self, header: Header) -> None:
        self.trainings.note_all([self.run(header)])
        super().do_remove(header)

    def do_remove_all(self, header: Header) -> None:
        self.trainings.note_all(self.all_runs())
        super().do_remove_all(header)
