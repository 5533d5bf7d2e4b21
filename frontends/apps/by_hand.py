"""Chooses contract and resource of an app that is served without a platform, from a directory or an
archive.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .contract import Contract
from .errors import ResourceRefused
from .generations import contract_of
from .handler_folder import HandlerFolder

__all__ = ["chosen_resource", "contract_by_hand"]


def contract_by_hand(folder: Path, environ: Mapping[str, str]) -> Contract:
    """Choose by the manifest; without a known manifest, serve the handlers in the
    folder. Blocking.
    """
    found = contract_of(folder, environ)
    return found if (folder / found.MANIFEST).exists() else HandlerFolder()


def chosen_resource(contract: Contract, folder: Path, named: str) -> str:
    """The resource that is named, or the only one with routes; blocking.

    Raises:
        AppError: the manifest cannot be read, it has no such resource, or none or several have routes.
    """
    resources = contract.summary(folder).resources
    if named:
        names = [each.name for each in resources]
        if named in names:
            return named
        raise ResourceRefused(
            f"There is no resource {named!r}; {folder} has: {', '.join(names) or 'none'}"
        )
    names = [each.name for each in resources if each.kind == "load-balanced"]
    if len(names) == 1:
        return names[0]
    raise ResourceRefused(
        f"{folder} has load-balanced resources: {', '.join(names) or 'none'}. "
        "Name one with --resource"
    )
