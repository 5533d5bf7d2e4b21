"""Environments as one file: packed, and unpacked although a stranger may have written them."""
