"""Chooses contract and resource of an app that is served without the platform."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .contract import Contract
from .errors import ResourceRefused
from .generations import contract_of
from .handler_folder import HandlerFolder

__all__ = ["chosen_resource", "contract_by_hand"]


def contract_by_hand(folder: Path, environ: Mapping[str, str]) -> Contract:
    """Choose by the manifest; without a known one, serve the handlers in the folder. Blocking."""
    found = contract_of(folder, environ)
    return found if (folder / found.MANIFEST).exists() else HandlerFolder()


def chosen_resource(contract: Contract, folder: Path, named: str) -> str:
    """Return the resource that is named, else the only load-balanced one; blocking.

    Raises:
        AppError: the manifest cannot be read, lacks the resource, or has not exactly one to choose.
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
