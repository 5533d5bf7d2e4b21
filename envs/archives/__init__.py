"""Environments as one file: packing, and unpacking of files that strangers may have written."""
