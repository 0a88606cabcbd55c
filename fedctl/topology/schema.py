"""The keys of fed.yaml, section by section.

A key that is absent is left to the defaults of `fedctl.federation`: `given` has only those that were written.
"""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from fedctl.topology.document import Address
from fedctl.topology.durations import Duration, Patience, Seconds
from fedctl.topology.fields import (
    AboveZero,
    Accelerator,
    CodecList,
    Devices,
    DpMode,
    Factor,
    InnerShare,
    Limit,
    LocalRule,
    Majority,
    Mode,
    Name,
    Natural,
    Patterns,
    Periods,
    Port,
    Positive,
    Reference,
    ScheduleMode,
    Seed,
    ShareOfNorm,
    ShareOrCount,
    SomeOf,
    Staleness,
    Strategy,
    Text,
    Word,
    refusal,
)
from fedctl.topology.speeds import Speed
from fedctl.topology.windows import Command, Days, Hours
from fedctl.topology.wording import describe

ABSENT: Any = None


class Section(BaseModel):
    """A mapping of fed.yaml: strict types, no unknown keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    @property
    def given(self) -> dict[str, Any]:
        """The fields that were written, by their names in `fedctl.federation`."""
        return {name: value for name, value in self if name in self.model_fields_set}

    @classmethod
    def allowed(cls) -> dict[str, Any]:
        """What may be written here, with the type of each."""
        return {field.alias or name: field.annotation for name, field in cls.model_fields.items()}


class MonitorSection(Section):
    metric: Text = ABSENT
    mode: Mode = ABSENT


class CallbackSection(Section):
    target: Annotated[Reference, Field(alias="class")]
    args: dict[str, Any] = ABSENT


def _written_out(callbacks: Any) -> Any:
    """`file.py:Class` is short for `{class: file.py:Class}`."""
    if not isinstance(callbacks, list):
        return callbacks
    return [{"class": each} if isinstance(each, str) else each for each in callbacks]


class TaskSection(Section):
    model: Reference
    data: Reference
    model_args: dict[str, Any] = ABSENT
    data_args: dict[str, Any] = ABSENT
    trainer: dict[str, Any] = ABSENT
    callbacks: Annotated[list[CallbackSection], BeforeValidator(_written_out)] = ABSENT
    reset_optimizer: bool = ABSENT
    monitor: MonitorSection = ABSENT


class ScheduleSection(Section):
    mode: ScheduleMode = ABSENT
    cohort: ShareOrCount = ABSENT
    overprovision: Factor = ABSENT
    quorum: ShareOrCount = ABSENT
    deadline_s: Annotated[Duration, Field(alias="deadline")] = ABSENT
    partial: bool = ABSENT
    attempts: Positive = ABSENT
    patience_s: Annotated[Patience, Field(alias="patience")] = ABSENT
    buffer: Positive = ABSENT
    concurrency: Positive = ABSENT
    staleness: Staleness = ABSENT
    max_staleness: Positive = ABSENT


class LimitsSection(Section):
    norm: Limit = ABSENT
    examples: Positive | None = ABSENT


class WhenSection(Section):
    hours: Hours = ABSENT
    days: Days = ABSENT
    command: Command = ABSENT

    @model_validator(mode="after")
    def _says_something(self) -> "WhenSection":
        if not self.model_fields_set:
            raise refusal("should have hours, days or a command", "leave `when` out for a node that may always be used")
        return self


class ShareSection(Section):
    only: Patterns = ABSENT
    kept: Annotated[Patterns, Field(alias="except")] = ABSENT
    every: Periods = ABSENT
    change: ShareOfNorm = ABSENT

    @model_validator(mode="after")
    def _says_one_thing(self) -> "ShareSection":
        if self.only == ():
            raise refusal("only: should have a pattern at least", "leave `share` out where all is shared")
        if self.only and self.kept:
            raise refusal("should have `only` or `except`, not both", "leave out what the other says already")
        return self


class SecureAggregationSection(Section):
    threshold: Majority = ABSENT
    neighbours: Positive = ABSENT
    range: AboveZero = ABSENT
    examples: Positive = ABSENT
    patience_s: Annotated[Seconds, Field(alias="patience")] = ABSENT


class AdaptiveSection(Section):
    quantile: InnerShare = ABSENT
    rate: AboveZero = ABSENT
    noise: AboveZero = ABSENT


def _written_short(value: Any) -> Any:
    """`adaptive: true` and `secure_aggregation: true` have every default."""
    _not_empty(value, "true, false or a mapping")
    return {} if value is True else None if value is False else value


def _a_mapping(value: Any) -> Any:
    _not_empty(value, "a mapping")
    return value


def _not_empty(value: Any, wanted: str) -> None:
    """A key whose lines were all left out promises nothing, and looks as if it did."""
    if value is None:
        raise refusal(f"should be {wanted}, not empty", "remove the key, or give it what it needs")


class DifferentialPrivacySection(Section):
    mode: DpMode
    noise: AboveZero
    clip: AboveZero
    adaptive: Annotated[AdaptiveSection | None, BeforeValidator(_written_short)] = ABSENT
    delta: InnerShare = ABSENT
    epsilon: AboveZero = ABSENT


def _promised(value: Any) -> Any:
    """`none` promises nothing."""
    _not_empty(value, "none or a mapping")
    if value == "none":
        return None
    if isinstance(value, str):
        is_noise = any(part in value.casefold() for part in ("dp", "diff", "noise", "central", "distrib", "local"))
        meant = "differential_privacy: {mode: central, noise: 1.0, clip: 0.5}" if is_noise else "secure_aggregation: {}"
        raise refusal(f"should be none or a mapping, not {describe(value)}", f"such as `privacy: {{{meant}}}`")
    return value


class PrivacySection(Section):
    clip: AboveZero = ABSENT
    secure_aggregation: Annotated[SecureAggregationSection | None, BeforeValidator(_written_short)] = ABSENT
    differential_privacy: Annotated[DifferentialPrivacySection, BeforeValidator(_a_mapping)] = ABSENT


class FinetuneSection(Section):
    epochs: Positive = ABSENT
    model_args: dict[str, Any] = ABSENT


class DefaultsSection(Section):
    """What every node has unless it says otherwise; `data` is merged key by key."""

    host: Word = ABSENT
    user: Word | None = ABSENT
    port: Port | None = ABSENT
    key: Text | None = ABSENT
    jump: Word | None = ABSENT
    python: Text | None = ABSENT
    wheelhouse: Text | None = ABSENT
    home: Text | None = ABSENT
    accelerator: Accelerator = ABSENT
    devices: Devices = ABSENT
    slots: Positive | None = ABSENT
    threads: Natural = ABSENT
    bandwidth_bps: Annotated[Speed, Field(alias="bandwidth")] = ABSENT
    uplink_bps: Annotated[Speed, Field(alias="uplink")] = ABSENT
    downlink_bps: Annotated[Speed, Field(alias="downlink")] = ABSENT
    when: WhenSection | None = ABSENT
    data: dict[str, Any] = ABSENT


class NodeSection(DefaultsSection):
    """One node, or `count` of them that differ in `{i}`."""

    name: str
    count: Positive | None = ABSENT


class FederationSection(Section):
    """The top level."""

    name: Name
    seed: Seed = ABSENT
    rounds: Positive = ABSENT
    task: TaskSection
    strategy: Strategy = ABSENT
    local: LocalRule = ABSENT
    schedule: ScheduleSection = ABSENT
    limits: LimitsSection = ABSENT
    share: ShareSection = ABSENT
    finetune: FinetuneSection | None = ABSENT
    codec: CodecList = ABSENT
    privacy: Annotated[PrivacySection | None, BeforeValidator(_promised)] = ABSENT
    compare: bool = ABSENT
    defaults: DefaultsSection = ABSENT
    nodes: Annotated[list[NodeSection], SomeOf]


def section_at(address: Address) -> type[Section]:
    """The section that an address leads to; indices of lists are passed over."""
    section: type[Section] = FederationSection
    for part in address:
        if isinstance(part, str):
            section = _section(section.allowed()[part])
    return section


def _section(annotation: Any) -> type[Section]:
    candidates = (annotation, *get_args(annotation))
    return next(each for each in candidates if isinstance(each, type) and issubclass(each, Section))
