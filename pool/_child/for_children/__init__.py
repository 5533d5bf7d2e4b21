"""Modules that programs started by a call find first; a folder on their `PYTHONPATH`."""
