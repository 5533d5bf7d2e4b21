"""Bytes to calls, and values to bytes: requests, sources, pickles, exceptions."""
