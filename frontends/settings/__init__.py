"""The FLASHPOOL_* variables, read once; the rest of the server gets plain values."""
