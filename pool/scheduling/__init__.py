"""Decisions only: which call runs where, which zygote starts, which leaves."""
