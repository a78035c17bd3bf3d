"""Settings that mean the same from Python, YAML and the environment: the same names, and all of them checked."""

from __future__ import annotations

import difflib
import os
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Self

FILE = "RADIODATA_CONFIG"


class Settings:
    """Base of a frozen dataclass that says how something is done.

    Attributes
    ----------
    SECTION
        Of a YAML file; environment variables begin with ``RADIODATA_SECTION_``.
    TAKES
        For each field, what makes a value of what a person wrote; raises ``ValueError``, saying what is taken.
    """

    SECTION: ClassVar[str]
    TAKES: ClassVar[Mapping[str, Callable[[Any], Any]]]

    def __post_init__(self) -> None:
        for name, take in self.TAKES.items():
            object.__setattr__(self, name, _taken(take, getattr(self, name), f"{type(self).__name__}, {name}"))

    @classmethod
    def from_yaml(cls, path: str | Path, **changes: Any) -> Self:
        """Settings of a YAML file, from its section named as ``SECTION``; what it does not name is as by default.

        Parameters
        ----------
        changes
            Values that come before those of the file.

        Raises
        ------
        ConfigError
            When the file cannot be read, or a name or a value cannot be taken.
        """
        return cls(**{**cls._of_yaml(path), **changes})

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **changes: Any) -> Self:
        """Settings of the environment: ``RADIODATA_SECTION_NAME``, over the file that ``RADIODATA_CONFIG`` names.

        It is what is used where no settings are passed. Values are written as in YAML.

        Parameters
        ----------
        environ
            By default that of this process.
        changes
            Values that come before those of the environment.

        Raises
        ------
        ConfigError
            When a name or a value cannot be taken.
        """
        given = os.environ if environ is None else environ
        values = cls._of_yaml(given[FILE]) if given.get(FILE) else {}
        prefix = f"RADIODATA_{cls.SECTION.upper()}_"
        for name, text in given.items():
            if name.startswith(prefix):
                field = cls._known(name.removeprefix(prefix).lower(), f"environment variable {name}")
                values[field] = _taken(cls.TAKES[field], _plain(text), f"environment variable {name}")
        return cls(**{**values, **changes})

    @classmethod
    def _of_yaml(cls, path: str | Path) -> dict[str, Any]:
        try:
            held = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"cannot read the settings in {path}: {error}") from error
        section = held.get(cls.SECTION) if isinstance(held, dict) else held
        if not isinstance(section, dict | None):
            raise ConfigError(f"{path}: write a section {cls.SECTION!r} with one line a setting")
        values = {}
        for name, value in (section or {}).items():
            field = cls._known(str(name), f"{path}, section {cls.SECTION!r}")
            values[field] = _taken(cls.TAKES[field], value, f"{path}, {cls.SECTION}.{name}")
        return values

    @classmethod
    def _known(cls, name: str, where: str) -> str:
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]
        if name in names:
            return name
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
        raise ConfigError(f"{where}: {cls.__name__} has no setting {name!r}; {hint}")


def _plain(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    return value if isinstance(value, int | float | bool | list | dict | None) else text


def _taken(take: Callable[[Any], Any], value: Any, where: str) -> Any:
    try:
        return take(value)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}, not {value!r}") from error


def whole(least: int) -> Callable[[Any], int]:
    """Take a whole number that is no smaller."""

    def take(value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"it must be a whole number, at least {least}")
        return value

    return take


def truth(value: Any) -> bool:
    """Take true or false."""
    if not isinstance(value, bool):
        raise ValueError("it must be true or false")  # noqa: TRY004 (told as the other values are)
    return value


def maybe(take: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Take nothing, too: None, or the word."""

    def take_any(value: Any) -> Any:
        if value is None or value in ("", "none", "None"):
            return None
        try:
            return take(value)
        except ValueError as error:
            raise ValueError(f"{error}, or none") from error

    return take_any


def one_of(*words: str) -> Callable[[Any], str]:
    """Take one of some words."""

    def take(value: Any) -> str:
        if value not in words:
            raise ValueError(f"it must be {' or '.join(map(repr, words))}")
        return str(value)

    return take


def text(value: Any) -> str:
    """Take text."""
    if not isinstance(value, str) or not value:
        raise ValueError("it must be text")
    return value


def texts(value: Any) -> tuple[str, ...]:
    """Take several texts: a list, or one text with commas."""
    parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    return tuple(text(part) for part in parts)


def options(value: Any) -> dict[str, str]:
    """Take names and values: ``{"vfs.s3.region": "eu"}``, or nested, ``{"vfs": {"s3": {"region": "eu"}}}``."""
    if not hasattr(value, "items"):
        raise ValueError("it must map names to values")
    flat: dict[str, str] = {}
    for name, inner in value.items():
        if hasattr(inner, "items"):
            flat.update({f"{name}.{below}": one for below, one in options(inner).items()})
        else:
            flat[str(name)] = str(inner).lower() if isinstance(inner, bool) else str(inner)
    return flat
