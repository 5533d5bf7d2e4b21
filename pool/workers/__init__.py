"""Zygotes, workers and their calls: all descriptors and signals of a pool are here."""
