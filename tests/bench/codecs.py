"""`codecs`: how few bytes an update becomes, how far off it then is, and how fast it gets there and back.

The update is real: what three epochs on scikit-learn's digits, drawn 28 pixels wide, make of McMahan's CNN of 1,663,370
parameters after a first one. Fifteen copies of it, each in memory of its own, are one update of 25 million. One thread
works, and its own time counts: from the change in memory to the bytes that travel and back, and, of the pipeline that
has targets, from weights to a file and back, with the base, SHA-256 and all.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedctl.codecs.pipeline import Pipeline, seed_of
from fedctl.codecs.wire import Outgoing, in_order, read
from fedctl.weights import Weights, part, save, spec_of
from tests.bench.digits import Workshop
from tests.bench.measure import Row, median, shown

COPIES, TIMES, SEED, LR, BATCH = 15, 5, 7, 0.05, 32
ZSTD = {"name": "zstd"}
PIPELINES: Mapping[str, Sequence[Mapping[str, Any]]] = {
    "bf16": [{"name": "bf16"}],
    "bf16, zstd": [{"name": "bf16"}, ZSTD],
    "fp16": [{"name": "fp16"}],
    "int8": [{"name": "int8"}],
    "int8, zstd": [{"name": "int8"}, ZSTD],
    "int8, zstd -5": [{"name": "int8"}, {**ZSTD, "level": -5}],
    "int4": [{"name": "int4"}],
    "int4, zstd": [{"name": "int4"}, ZSTD],
    "topk 0.1, int8, zstd": [{"name": "topk", "keep": 0.1}, {"name": "int8"}, ZSTD],
    "topk 0.01, int8, zstd": [{"name": "topk", "keep": 0.01}, {"name": "int8"}, ZSTD],
    "powersgd 4": [{"name": "powersgd", "rank": 4}],
}
JUDGED, ENCODED, DECODED = "int8, zstd", 0.5, 2.0
"""The pipeline with targets; GB of float32 a second."""


def codecs(workshop: Workshop) -> list[Row]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        before, after = (_copied(tensors) for tensors in trained())
        change = {name: after[name] - before[name] for name in after}
        rows = [row for name in PIPELINES for row in _in_memory(name, change)]
        return rows + _in_files(before, after, workshop.path)
    finally:
        torch.set_num_threads(threads)


def trained() -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
    """The weights before and after."""
    from sklearn.datasets import load_digits

    torch.manual_seed(SEED)
    found, digits = (torch.from_numpy(each) for each in load_digits(return_X_y=True))
    images = functional.interpolate(found.float().view(-1, 1, 8, 8) / 16, size=(28, 28), mode="bilinear")
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)),
    )
    optimizer = torch.optim.SGD(model.parameters(), LR)

    def learn(epochs: int) -> Mapping[str, Tensor]:
        for _ in range(epochs):
            for batch in torch.randperm(len(images)).split(BATCH):
                optimizer.zero_grad()
                functional.cross_entropy(model(images[batch]), digits[batch]).backward()
                optimizer.step()
        return {name: value.clone() for name, value in model.state_dict().items()}

    return learn(1), learn(3)


def _copied(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return {f"{copy}.{name}": value.clone() for copy in range(COPIES) for name, value in tensors.items()}


def _in_memory(name: str, change: Mapping[str, Tensor]) -> list[Row]:
    pipeline, spec = Pipeline.of([{"name": "delta"}, *PIPELINES[name]]), spec_of(change)
    size = sum(one.size for one in spec.values())

    def encode() -> list[Tensor]:
        parts = (part for each in change for part in pipeline.narrowed(change[each], seed_of(SEED, each)))
        return [pipeline.packing.pack(parts)] if pipeline.packing else list(parts)

    def decode() -> Iterator[tuple[str, Tensor]]:
        come = iter(encoded)
        take = pipeline.packing.unpack(encoded[0]).take if pipeline.packing else lambda _: next(come)
        for each, one in spec.items():
            parts = [take(part) for part in pipeline.layout(each, one, has_base=True)]
            yield each, pipeline.widened(parts, one, seed_of(SEED, each))

    encoded = encode()
    off = sum(_square(values - change[each]) for each, values in decode()) / sum(map(_square, change.values()))
    ratio = size / sum(part.nbytes for part in encoded)
    encoding, decoding = _speed(size, encode), _speed(size, lambda: deque(decode(), maxlen=0))
    about = f"relative error {off**0.5:.2g}, encoded at {shown(encoding, 'GB/s')}, decoded at {shown(decoding, 'GB/s')}"
    details = {"relative_error": off**0.5, "encoded_gb_per_s": encoding, "decoded_gb_per_s": decoding}
    rows = [Row(name=f"codecs: {name}", value=ratio, unit="x", beside=about, details=details)]
    if name == JUDGED:
        rows += [
            Row(name=f"codecs: {name}, encoded", value=encoding, unit="GB/s", at_least=ENCODED),
            Row(name=f"codecs: {name}, decoded", value=decoding, unit="GB/s", at_least=DECODED),
        ]
    return rows


def _in_files(before: Mapping[str, Tensor], after: Mapping[str, Tensor], folder: Path) -> list[Row]:
    pipeline, spec = Pipeline.of([{"name": "delta"}, *PIPELINES[JUDGED]]), spec_of(after)
    size = save(folder / "base", before).size
    base = Weights.open(folder / "base")
    outgoing = Outgoing(pipeline=pipeline, tensors=part(after, after), base=base, seed=SEED)

    def load() -> None:
        arrived = read(folder / "update", pipeline, spec, base, seed=SEED)
        deque((arrived[name] for name in in_order(spec)), maxlen=0)

    return [
        Row(name=f"codecs: {JUDGED}, {what}", value=_speed(size, work), unit="GB/s")
        for what, work in (
            ("weights to a file", lambda: outgoing.save(folder / "update", spec)),
            ("weights from a file", load),
        )
    ]


def _square(values: Tensor) -> float:
    return float(values.double().square().sum())


def _speed(size: int, work: Callable[[], object]) -> float:
    """GB a second."""

    def once() -> float:
        began = time.thread_time()
        work()
        return time.thread_time() - began

    return size / 1e9 / median(once() for _ in range(TIMES))
