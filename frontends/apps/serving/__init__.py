"""Serves an app: passes requests to the pool, and answers to clients."""
