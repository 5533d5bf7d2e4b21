"""Runs jobs of the platform's queue in workers of a deployed app."""
