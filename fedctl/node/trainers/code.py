"""The user's classes: `file.py:Class`, and which Lightning they are of."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from fedctl.errors import ConfigError

Flavour = Literal["lightning.pytorch", "pytorch_lightning"]
FLAVOURS: tuple[Flavour, ...] = ("pytorch_lightning", "lightning.pytorch")


def load(target: str) -> Any:
    """The class behind `folder/file.py:Class`, imported as the user's own code would import it."""
    path, _, name = target.partition(":")
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    try:
        return getattr(module, name)
    except AttributeError:
        raise ImportError(f"{path} has no {name}") from None


def flavour_of(kind: Any, base: str, target: str, wanted: Flavour | None = None) -> Flavour:
    """Which Lightning a class belongs to; raises ConfigError when it is none, or not that of its model."""
    for flavour in FLAVOURS:
        if inspect.isclass(kind) and any(
            parent.__name__ == base and parent.__module__.startswith(flavour + ".") for parent in kind.__mro__
        ):
            if wanted not in (None, flavour):
                raise ConfigError(
                    f"{place(kind, target)} is a {base} of {flavour}, but the model is one of {wanted}: "
                    "import one of them in both"
                )
            return flavour
    raise ConfigError(f"{place(kind, target)} is no {base}")


def place(kind: Any, target: str) -> str:
    """`model.py:12: DigitsNet`, where the line is known."""
    path, _, name = target.partition(":")
    try:
        return f"{path}:{inspect.getsourcelines(kind)[1]}: {name}"
    except (OSError, TypeError):
        return f"{path}: {name}"


def bind(kind: Any, target: str, arguments: Mapping[str, Any], where: str) -> None:
    """Raises ConfigError when a class cannot be called with these arguments."""
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{place(kind, target)} and task.{where} in fed.yaml do not fit: {error}") from None


def seed_everything(flavour: Flavour, seed: int) -> None:
    """Seed Python, NumPy and torch; `seed` is below 2**32."""
    importlib.import_module(flavour).seed_everything(seed, verbose=False)
