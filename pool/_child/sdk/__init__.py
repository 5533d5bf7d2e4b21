"""Runs code of users of SDK 2.0: handles, start hooks, APIs. The request alone decides
what runs.
"""
