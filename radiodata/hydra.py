"""Where the Hydra configs lie, and what to say when a group is missing. Imports nothing heavy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from radiodata.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["config_dir", "require_group"]


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


def _options(group: str) -> list[str]:
    from hydra.core.global_hydra import GlobalHydra

    if GlobalHydra.instance().is_initialized():
        return sorted(GlobalHydra.instance().config_loader().get_group_options(group))
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
