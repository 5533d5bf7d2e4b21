"""Generations of the client, a package each. Only `assembly` and the command line know which there are."""
