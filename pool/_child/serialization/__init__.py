"""Decodes calls and encodes values: requests, sources, pickles, exceptions."""
