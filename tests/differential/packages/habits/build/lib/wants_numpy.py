"""Does without numpy where that cannot be imported."""

try:
    import numpy
except ImportError:
    numpy = None

HAS_NUMPY = numpy is not None
