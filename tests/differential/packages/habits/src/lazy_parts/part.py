"""A part, imported by those who want it."""

VALUE = "part"
