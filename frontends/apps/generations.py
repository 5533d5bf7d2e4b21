"""The one place that knows every generation of the client; see `contract`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flashpool.frontends.contracts.sdk2.deployed import SdkContract

from .contract import Contract
from .flash_contract import FlashContract

__all__ = ["contract_of"]


def contract_of(folder: Path, environ: Mapping[str, str]) -> Contract:
    """Return the contract for the manifest of an unpacked artifact; blocking.

    Without a known manifest, return the oldest contract, whose errors say what is missing.
    """
    contracts: tuple[Contract, ...] = (FlashContract(environ), SdkContract(environ))
    for contract in contracts:
        if (folder / contract.MANIFEST).exists():
            return contract
    return contracts[0]
