"""A module beside the functions: the client sends its source along."""

FACTOR = 3


def triple(value):
    return value * FACTOR
