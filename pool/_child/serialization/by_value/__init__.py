"""Pickles by value what only this process has: cloudpickle, with fixes where it fails."""
