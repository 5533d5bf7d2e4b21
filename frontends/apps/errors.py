"""Why a deployed app cannot be served.

    AppError                  the root; `passes`: whether the same may succeed later
      ArtifactMissing         there is no archive; passes
      ArtifactIncomplete      the archive ends too early or is damaged; passes, for it may still be written
      ArtifactRefused         the archive holds what no artifact may hold
      UnpackingFailed         the disk is full, or a directory cannot be written; passes
      UnpackingStopped        this process is about to leave; passes
      AppDirectoryRefused     what is served without unpacking is not there
      ManifestRefused         the manifest is missing, or says what cannot be followed
      ResourceRefused         the resource is not in the manifest, or its handler is not in the app
    NoAnswer                  apart: other resources are not found, and the app is served all the same

The message says what was looked for, where it was looked for, and what changes that.
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
    """The archive ends too early, or is damaged: it may still be on its way."""

    passes = True


class ArtifactRefused(AppError):
    """The archive contains something that no artifact may contain; nothing in it is used."""


class UnpackingFailed(AppError):
    """The machine has no room for the app, or no place that can be written."""

    passes = True


class UnpackingStopped(AppError):
    """Unpacking stopped because this process is about to exit."""

    passes = True


class AppDirectoryRefused(AppError):
    """The directory that was named as an unpacked app contains no app."""


class ManifestRefused(AppError):
    """The manifest is missing, cannot be read, or says what cannot be followed."""


class ResourceRefused(AppError):
    """The manifest lacks the resource, or the app lacks its handler."""


class NoAnswer(Exception):
    """The platform did not say where the app's other resources are."""
