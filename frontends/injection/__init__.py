"""Start flashpool in containers of other images: the command that brings it in."""

from .command import InjectionError, build_injection_cmd

__all__ = ["InjectionError", "build_injection_cmd"]
