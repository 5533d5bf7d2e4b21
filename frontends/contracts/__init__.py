"""Generations of the client, a package each.

Only `assembly`, `apps.generations` and the command line know which generations exist.
"""
