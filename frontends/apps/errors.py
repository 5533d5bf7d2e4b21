"""Why a deployed app cannot be served.

    AppError                  the root; `passes`: whether another attempt may succeed
      ArtifactMissing         the archive does not exist; passes
      ArtifactIncomplete      the archive is cut off or damaged, or still being written; passes
      ArtifactRefused         the archive cannot be opened, or contains something forbidden
      UnpackingFailed         the disk is full, or a directory cannot be written; passes
      UnpackingStopped        this process is about to exit; passes
      AppDirectoryRefused     the directory of an unpacked app does not exist
      ManifestRefused         the manifest is missing, unreadable or invalid
      ResourceRefused         the resource is not in the manifest, or its handler is not in the app
    NoAnswer                  not an AppError: the app is served, without its other resources

The message says what is missing or wrong, where flashpool looked, and how to change that.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AppDirectoryRefused",
    "AppError",
    "ArtifactIncomplete",
    "ArtifactMissing",
    "ArtifactRefused",
    "ManifestRefused",
    "NoAnswer",
    "ResourceRefused",
    "UnpackingFailed",
    "UnpackingStopped",
]


class AppError(Exception):
    """A deployed app cannot be served."""

    #: Whether another attempt, with unchanged files, may succeed.
    passes: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __reduce__(self) -> tuple[type[AppError], tuple[str]]:
        return type(self), (self.message,)


class ArtifactMissing(AppError):
    """The archive does not exist."""

    passes = True


class ArtifactIncomplete(AppError):
    """The archive ends too early or is damaged: it may be incomplete as yet."""

    passes = True


class ArtifactRefused(AppError):
    """The archive cannot be opened, or contains something forbidden; nothing of it is used."""


class UnpackingFailed(AppError):
    """The disk has no room for the app, or no directory is writable."""

    passes = True


class UnpackingStopped(AppError):
    """Unpacking stopped because this process is about to exit."""

    passes = True


class AppDirectoryRefused(AppError):
    """The directory that the settings name as an unpacked app does not exist."""


class ManifestRefused(AppError):
    """The manifest is missing, unreadable or invalid."""


class ResourceRefused(AppError):
    """The manifest lacks the resource, or the app lacks its handler."""


class NoAnswer(Exception):
    """The platform did not say where the app's other resources are."""
