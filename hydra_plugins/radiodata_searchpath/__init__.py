"""Make ``+data=ct_isotropic`` and the other groups of radiodata known to every Hydra application.

The folder is appended: a file of the same name in the application's own configs comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hydra.plugins.search_path_plugin import SearchPathPlugin

from radiodata.hydra import config_dir

if TYPE_CHECKING:
    from hydra.core.config_search_path import ConfigSearchPath

__all__ = ["RadiodataSearchPathPlugin"]


class RadiodataSearchPathPlugin(SearchPathPlugin):  # type: ignore[misc]  # hydra is untyped
    """Append radiodata's configs to the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the folder, unless the application has it as its own already.

        Parameters
        ----------
        search_path
            The search path that Hydra is building.
        """
        path = f"file://{config_dir()}"
        known = {str(element.path).removeprefix("file://") for element in search_path.get_path()}
        if str(config_dir()) not in known:
            search_path.append(provider="radiodata", path=path)
