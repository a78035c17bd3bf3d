"""Where the Hydra configs lie, and what to say when a group is missing. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["Option", "config_dir", "options", "require_group", "require_values"]


def config_dir() -> Path:
    """Folder of the Hydra configs that come with radiodata.

    Returns
    -------
    pathlib.Path
        ``radiodata/configs`` in an installed wheel; the repository's ``configs`` in an editable install.

    Raises
    ------
    radiodata.errors.ConfigError
        Neither folder exists: the installation is damaged.

    Examples
    --------
    >>> from radiodata.hydra import config_dir
    >>> (config_dir() / "data" / "ct_isotropic.yaml").exists()
    True
    """
    package = Path(__file__).resolve().parent
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "train.yaml").is_file():
            return folder
    raise ConfigError(
        f"no Hydra configs beside {package}: neither configs/train.yaml in it nor in its parent; "
        "install radiodata again"
    )


def require_group(config: Mapping[str, Any], group: str, example: str) -> None:
    """Refuse a composed config to which nothing was added for `group`.

    Parameters
    ----------
    config
        The config that ``@hydra.main`` or ``hydra.compose`` made.
    group
        The group's name, e.g. ``"data"``. It counts as given when it holds a ``_target_``.
    example
        An option to show in the message.

    Raises
    ------
    radiodata.errors.ConfigError
        The group is missing; the message lists the options on this run's search path.
    """
    if "_target_" in (config.get(group) or {}):
        return
    raise ConfigError(
        f"no {group} was chosen: say +{group}={example} on the command line; available: {', '.join(_options(group))}"
    )


def require_values(config: Any, *, hints: Mapping[str, str] | None = None) -> None:
    """Refuse a composed config in which mandatory values (``???``) were left out.

    Parameters
    ----------
    config
        The config that ``@hydra.main`` or ``hydra.compose`` made.
    hints
        Name to what to say beside it.

    Raises
    ------
    radiodata.errors.ConfigError
        Values are missing; the message says which, and how they are given.
    """
    from omegaconf import OmegaConf

    missing = sorted(OmegaConf.missing_keys(config))
    if not missing:
        return
    told = {"data.uri": "the cohort, a path or a URI", **(hints or {})}
    lines = [f"  {name}=...{f'   {told[name]}' if name in told else ''}" for name in missing]
    raise ConfigError("these values are mandatory: say on the command line\n" + "\n".join(lines))


@dataclass(frozen=True)
class Option:
    """One file of the configs.

    Attributes
    ----------
    group, name
        ``data``, ``ct_isotropic``.
    summary
        Its first comment.
    given
        How it is given to ``recipes/train.py``: ``+data=ct_isotropic``.
    """

    group: str
    name: str
    summary: str
    given: str


def options(group: str | None = None) -> list[Option]:
    """Options of a group, or of all groups, as ``radiodata configs`` lists them.

    Raises
    ------
    radiodata.errors.ConfigError
        There is no such group.
    """
    folders = sorted(path for path in config_dir().iterdir() if path.is_dir() and not path.name.startswith(("_", ".")))
    if group is not None and group not in (names := [path.name for path in folders]):
        raise ConfigError(f"there is no group {group!r}; there are {', '.join(names)}")
    return [
        Option(
            folder.name,
            path.stem,
            _summary(path),
            f"{'' if folder.name in _IN_DEFAULTS else '+'}{folder.name}={path.stem}",
        )
        for folder in folders
        if group in (None, folder.name)
        for path in sorted(folder.glob("*.yaml"))
    ]


_IN_DEFAULTS = ("experiment", "model", "optim")
"""Groups that the training recipe has in its defaults list: they are swapped, the others added with +."""


def _summary(path: Path) -> str:
    comments = (line.removeprefix("#").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@package")), "")


def _options(group: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
