"""The one place that knows every generation of the client; see `contract`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flashpool.frontends.contracts.sdk2.deployed import SdkContract

from .contract import Contract
from .flash_contract import FlashContract

__all__ = ["contract_of"]


def contract_of(folder: Path, environ: Mapping[str, str]) -> Contract:
    """The contract of an unpacked artifact, known by its manifest; blocking.

    Without a known manifest, the oldest contract reports what it found instead.
    """
    contracts: tuple[Contract, ...] = (FlashContract(environ), SdkContract(environ))
    for contract in contracts:
        if (folder / contract.MANIFEST).exists():
            return contract
    return contracts[0]
