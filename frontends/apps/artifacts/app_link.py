"""The link by which people find the app: ``/app`` leads to the directory of the unpacked app.

    no file, an empty directory, a link of flashpool   -> a link to this app, by one rename
    a directory with files, any other link, a file     -> left alone

Nothing is served through the link. A link that moves to a new app while workers of the old app
still import modules would mix the two, so an app's working directory is the folder to which it was
unpacked.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from flashpool.envs.store.layout import names_in

from .app_store import holder_lives, holder_name, is_app_directory

__all__ = ["switch_link"]

_MARK = ".flashpool-"


def switch_link(link: Path, target: Path) -> str:
    """Make ``link`` lead to ``target``; return why it does not, or an empty string."""
    try:
        if problem := _problem(link):
            return f"{problem}: it stays as it is"
        if _leads_to(link, target):
            return ""
        link.parent.mkdir(parents=True, exist_ok=True)
        _remove_leavings(link)
        unfinished = link.with_name(f".{link.name}{_MARK}{holder_name()}")
        unfinished.symlink_to(target)
        try:
            unfinished.replace(link)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
    except OSError as error:
        return f"{link} cannot be made a link: {error.strerror or error}"
    return ""


def _problem(link: Path) -> str:
    """Return why existing files are left alone, else ``""``; remove an empty directory."""
    if link.is_symlink():
        leads = os.readlink(link)
        return "" if is_app_directory(leads) else f"{link} is another's link, to {leads}"
    if not link.exists():
        return ""
    if not link.is_dir():
        return f"{link} is a file"
    if os.listdir(link):
        return f"{link} is a directory with files"
    link.rmdir()
    return ""


def _leads_to(link: Path, target: Path) -> bool:
    return link.is_symlink() and os.readlink(link) == str(target)


def _remove_leavings(link: Path) -> None:
    """Remove links of processes that were killed before they renamed them."""
    prefix = f".{link.name}{_MARK}"
    for name in names_in(link.parent):
        path = link.with_name(name)
        if not name.startswith(prefix) or holder_lives(name.removeprefix(prefix)):
            continue
        if path.is_symlink():
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
