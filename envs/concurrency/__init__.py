"""Waiting, for code on one event loop: nothing here knows of packages."""
