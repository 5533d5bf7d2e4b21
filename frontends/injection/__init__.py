"""Builds the command that installs and starts flashpool in containers of other images."""

from .command import InjectionError, build_injection_cmd

__all__ = ["InjectionError", "build_injection_cmd"]
