"""Modules that programs started by a call find in front of others; a folder of their `PYTHONPATH`."""
