"""Runs user code written for SDK 2.0: handles, start hooks, APIs. The request decides what runs."""
