"""What a training hands in: its update as it travels, and what of it stays here until it is its turn."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from fedctl.codecs.pipeline import Pipeline
from fedctl.codecs.wire import Outgoing
from fedctl.header import TensorSpec
from fedctl.node.keep import Kept
from fedctl.node.trainers.parts import share_of
from fedctl.privacy import Privacy
from fedctl.records import Blob, Task
from fedctl.weights import CONTROL, Weights, controls_of, joined, part, save, spec_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Handing:
    """What a training hands in: its update as it travels, and what of it stays here for now."""

    update: Outgoing
    expected: Mapping[str, TensorSpec]
    beside: Mapping[str, TensorSpec]
    waiting: Mapping[str, Tensor]

    @property
    def residual(self) -> Mapping[str, Tensor]:
        """What the update does not bring over, with what waited in vain before: it goes with the next one."""
        lost = self.update.lost
        earlier = {name: one for name, one in self.update.residual.items() if name not in self.update.tensors}
        return joined(lost, earlier) if earlier else lost

    def save(self, path: Path) -> Blob:
        """Write the update; raises ModelError for a tensor that no file can hold."""
        if self.update.pipeline.is_coded(self.update.least):
            return self.update.save(path, self.expected, self.beside)
        return save(path, self.update.tensors)


def handed_in(
    task: Task,
    models: Mapping[str, Path],
    state: Mapping[str, Tensor],
    controls: Mapping[str, Tensor],
    kept: Kept | None,
) -> Handing:
    """Of a trained model's tensors those that travel now, with the rule's controls beside them."""
    share, model = share_of(task), Weights.open(models["base"])
    shared = {name: tensor for name, tensor in state.items() if share.covers(name)}
    if task.key.kind != "train":
        whole = Outgoing(pipeline=Pipeline(), tensors=shared, base={})
        return Handing(update=whole, expected={}, beside={}, waiting={})
    due = share.due({name: spec.size for name, spec in spec_of(shared).items()}, task.key.round)
    base = part(model, [name for name in model if name in due])
    update: Mapping[str, Tensor] = {name: shared[name] for name in due}
    privacy = Privacy.from_json(task.privacy)
    if privacy.norm is not None and not privacy.is_secure:
        from fedctl.dp.clipping import clipped

        update = clipped(part(update, base), base, privacy.norm)
    return Handing(
        update=Outgoing(
            pipeline=Pipeline.of(task.codec.get("up", ())),
            tensors=joined(update, {CONTROL + name: one for name, one in controls.items()}),
            base=base,
            residual=kept.residual if kept else {},
            seed=task.seed,
            least=share.change,
        ),
        expected=base.spec,
        beside=controls_of(base.spec) if controls else {},
        waiting={name: shared[name] for name in shared if name not in due},
    )
