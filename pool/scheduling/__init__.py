"""Decisions only: which call runs where, which zygotes start and which exit."""
