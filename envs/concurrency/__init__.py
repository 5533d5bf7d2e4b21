"""Waiting, for code on one event loop: independent of packages."""
