"""What a result claims, held against what its task can have come to.

Pure.
"""

from fedctl.actions import Perform
from fedctl.errors import ModelError, ProtocolError
from fedctl.privacy import Privacy
from fedctl.records import DIFFERENCE, MEMORY, REST, Result, Task

MOST_OPTIMIZERS = 16
"""Lightning counts the steps of every optimizer; so many may be stepped on each batch."""


def check_labels(result: Result, action: Perform) -> None:
    """Refuse scores of other models than were sent, but for the node's own where it may have one.

    Raises ProtocolError.
    """
    scored = set(action.models) - {REST, MEMORY, DIFFERENCE}
    may_have_one = action.task.kind == "finetune" or action.kept is not None
    if not scored <= set(result.scores) <= scored | ({"personal"} if may_have_one else set()):
        raise ProtocolError("the node scored other models than it was asked to")


def check_examples(result: Result, most: int | None) -> None:
    """Refuse a result that claims so many examples that it alone would decide; raises ModelError."""
    claimed = max([result.examples, *(score.examples for score in result.scores.values())])
    if most is not None and claimed > most:
        raise ModelError(f"it claims {claimed:,} examples, and `limits.examples` allows {most:,}")


def check_steps(result: Result, task: Task, *, is_needed: bool) -> None:
    """Refuse a result that claims more optimizer steps than its task can have, or none; raises ModelError."""
    if is_needed and not result.steps:
        raise ModelError("it tells of no optimizer step, and the strategy counts them: use Lightning's own optimizers")
    epochs, steps = (task.trainer.get(name) or -1 for name in ("max_epochs", "max_steps"))
    most = [*([epochs * result.examples] if epochs > 0 else []), *([steps] if steps > 0 else [])]
    if most and result.steps > MOST_OPTIMIZERS * min(most):
        raise ModelError(f"it claims {result.steps:,} steps, and its task can have {MOST_OPTIMIZERS * min(most):,}")


def check_noise(result: Result, task: Task) -> None:
    """Refuse a training that does not tell of the noise which was asked of its gradients; raises ModelError."""
    dp = Privacy.from_json(task.privacy).differential_privacy
    if dp is None or dp.mode != "local":
        return
    if (result.privacy.get("noise"), result.privacy.get("delta")) != (dp.noise, dp.delta):
        raise ModelError(f"it does not tell of a noise of {dp.noise:g} at delta {dp.delta:g}, which it was asked for")
