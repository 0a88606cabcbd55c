"""What the owner's policy says to one request: nothing, or why it may not be met, as a sentence.

Who asks knows the policy only by these words, so each names what was asked for and not what else is on this machine.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional

from fedctl.node.agent import FOLDER, Refused, rest_until
from fedctl.node.owner import arguments
from fedctl.node.owner.approvals import CODE, ENVIRONMENT
from fedctl.node.owner.terms import Policy
from fedctl.node.owner.trainings import no_more

PRELOAD = ("torch", "pytorch_lightning", "lightning.pytorch")
"""What a worker may import before its tasks."""
OPTIONS = frozenset(
    (
        "accelerator",
        "devices",
        "precision",
        "fast_dev_run",
        "max_epochs",
        "min_epochs",
        "max_steps",
        "min_steps",
        "max_time",
        "limit_train_batches",
        "limit_val_batches",
        "limit_test_batches",
        "limit_predict_batches",
        "overfit_batches",
        "val_check_interval",
        "check_val_every_n_epoch",
        "num_sanity_val_steps",
        "log_every_n_steps",
        "enable_progress_bar",
        "enable_model_summary",
        "accumulate_grad_batches",
        "gradient_clip_val",
        "gradient_clip_algorithm",
        "deterministic",
        "benchmark",
        "inference_mode",
        "use_distributed_sampler",
        "detect_anomaly",
        "barebones",
        "sync_batchnorm",
        "reload_dataloaders_every_n_epochs",
        "enable_autolog_hparams",
    )
)
"""Arguments of Lightning's Trainer that neither write files, nor open lines, nor load code, whatever their value."""
HARMLESS: Mapping[str, tuple[Any, ...]] = {
    "logger": (False, None),
    "enable_checkpointing": (False, None),
    "strategy": ("auto",),
    "num_nodes": (1,),
    "profiler": (None,),
    "plugins": (None,),
    "model_registry": (None,),
}
"""Those of the others that may be given, with the values by which they do no such thing."""
HANDED_IN = ("a", "s")
"""Letters of tasks whose update this node's data is in."""
NOISY = {"a": ("central", "distributed", "local"), "s": ("local",)}
"""Where noise may be added in a task of a letter: to train alone is to have nobody to add it with."""


def refusal(policy: Policy, task: Mapping[str, Any], *, bundle: Path, folder: Path, trainings: int) -> Optional[str]:
    """Why a task may not start; None where it may. Raises Refused for what is no task.

    Its code is unpacked at `bundle`, its worker is in `folder`, and this node has done so many `trainings`.
    """
    name = str(task.get("key")).replace("/", "-")
    if not FOLDER.match(name):
        raise Refused(f"not a task key: {task.get('key')!r}")
    letter = name.rpartition("-")[2][0]
    try:
        found = (
            _exhausted(policy, letter, trainings),
            _unprotected(policy, letter, task.get("privacy") or {}),
            refused_command(policy, (task.get("when") or {}).get("command") or []),
            arguments.refused_classes(task, bundle),
            arguments.refused_paths(policy.data.paths, arguments.texts(task), folder),
            _refused_options(policy, task["trainer"]),
        )
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"not a task: {type(error).__name__}: {error}") from None
    return next((why for why in found if why), None)


def _exhausted(policy: Policy, letter: str, trainings: int) -> Optional[str]:
    if policy.rounds is not None and letter in (*HANDED_IN, "f") and trainings >= policy.rounds:
        return no_more(policy.rounds)
    return None


def _unprotected(policy: Policy, letter: str, privacy: Mapping[str, Any]) -> Optional[str]:
    """Why an update would leave with less than the policy asks for."""
    if letter not in HANDED_IN:
        return None
    masked = bool(privacy.get("secure_aggregation")) and letter == "a"
    if policy.secure_aggregation.required and not masked:
        which = "a model trained alone is one node's" if letter == "s" else "set `privacy: {secure_aggregation: {}}`"
        return f"the owner of this node lets updates leave by secure aggregation alone: {which}"
    terms = policy.differential_privacy
    if terms is None:
        return None
    mode = (privacy.get("differential_privacy") or {}).get("mode")
    if mode in terms.modes and mode in NOISY[letter]:
        return None if mode != "distributed" or masked else "noise of the mode distributed hides in masked sums alone"
    modes = " or ".join(terms.modes)
    found = f"mode {mode}" if mode else "none"
    return f"the owner of this node asks for differential privacy of the mode {modes}, and the task has {found}"


def refused_command(policy: Policy, command: List[str]) -> Optional[str]:
    """Why a program may not be run to ask whether this machine is free."""
    if not command:
        return None
    allowed = {arguments.real(path) for path in policy.commands}
    program = command[0]
    if isinstance(program, str) and program.startswith(("/", "~/")) and arguments.real(program) in allowed:
        return None
    return f"the owner of this node does not allow the program {_shown(command[0])} to be run"


def _refused_options(policy: Policy, trainer: Mapping[str, Any]) -> Optional[str]:
    for name, value in trainer.items():
        is_harmless = name in HARMLESS and any(value is one or _same(value, one) for one in HARMLESS[name])
        if name not in OPTIONS and not is_harmless:
            return f"the owner of this node does not allow `task.trainer: {name}`: it writes, connects or loads code"
    if policy.limits.gpus is not None:
        return _refused_gpus(policy.limits.gpus, trainer)
    return None


def _same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and bool(value == other)


def _refused_gpus(gpus: tuple[int, ...], trainer: Mapping[str, Any]) -> Optional[str]:
    """A training sees the allowed ones alone; where there are none, one that insists would fail late."""
    accelerator = trainer.get("accelerator", "auto")
    if gpus or accelerator in ("cpu", "auto"):
        return None
    return f"the owner of this node allows no GPU, and the task asks for the accelerator {_shown(accelerator)}"


def refused_worker(policy: Policy, worker: Mapping[str, Any], approvals: Any) -> Optional[str]:
    """Why a worker may not be started; its `cwd` is not looked at, for its tasks' paths are read in another folder."""
    if "environment" in worker:
        python = refused_environment(policy, worker["environment"], approvals)
    else:
        python = refused_python(policy, worker.get("python"))
    preload = next((name for name in worker.get("preload") or [] if name not in PRELOAD), None)
    return (
        refused_code(policy, worker.get("bundle"), approvals)
        or python
        or (f"the owner of this node does not allow {_shown(preload)} to be imported" if preload is not None else None)
    )


def refused_code(policy: Policy, digest: Any, approvals: Any) -> Optional[str]:
    """Why a bundle may not be run."""
    if policy.code == "any" or approvals.is_approved(digest, CODE):
        return None
    return f"the code is not approved there: ask the owner to run `fedctl node approve {str(digest)[:12]}`"


def refused_environment(policy: Policy, digest: Any, approvals: Any) -> Optional[str]:
    """Why packages may not be installed, or what was installed not be used."""
    if policy.environments == "none":
        return f"the owner of this node lets no packages be installed; use {_pythons(policy)} as `python`"
    if policy.environments == "any" or approvals.is_approved(digest, ENVIRONMENT):
        return None
    return f"the packages are not approved there: ask the owner to run `fedctl node approve {str(digest)[:12]}`"


def refused_python(policy: Policy, python: Any) -> Optional[str]:
    """Why a Python that is named may not be run; it has to be written as the policy writes it, for links differ."""
    allowed = {str(Path(path).expanduser()) for path in policy.pythons}
    if isinstance(python, str) and str(Path(python).expanduser()) in allowed:
        return None
    return f"the owner of this node does not allow the Python {_shown(python)}; allowed is {_pythons(policy)}"


def _pythons(policy: Policy) -> str:
    return " or ".join(policy.pythons) or "none"


def refused_paths(policy: Policy, paths: Iterable[Any]) -> Optional[str]:
    """Why nothing may be told of paths: one is not whole, or lies outside of what tasks may name."""
    found = list(paths)
    partial = next((path for path in found if not str(path).startswith(("/", "~/"))), None)
    if partial is not None:
        return f"{_shown(partial)} is not a whole path, such as /srv/xrays"
    return arguments.refused_paths(policy.data.paths, found)


def refused_modules(modules: Iterable[Any], bundle: Path) -> Optional[str]:
    """Why modules may not be imported for a trial: one is none of the bundle's."""
    for module in modules:
        if not isinstance(module, str) or not arguments.is_in(bundle, module.replace(".", "/")):
            return f"the module {_shown(module)} is not in the approved code"
    return None


def closed(policy: Policy, now: time.struct_time) -> Dict[str, Any]:
    """Whether the owner's hours are on, as `fedctl.node.agent.judge` says it; `seconds` until they are."""
    rest_s = rest_until([list(span) for span in policy.hours], list(policy.days), now)
    if not rest_s:
        return {"may": True, "why": "", "seconds": 0.0}
    begin = time.strftime("%a %H:%M", time.localtime(time.mktime(now) + rest_s))
    return {"may": False, "why": f"outside its owner's hours until {begin}", "seconds": rest_s}


def _shown(value: Any) -> str:
    return repr(value)[:200]
