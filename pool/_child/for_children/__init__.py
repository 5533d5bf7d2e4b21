"""Modules that programs started by a call find first: the folder is on their ``PYTHONPATH``."""
