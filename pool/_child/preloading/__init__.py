"""Imports modules ahead of calls, after trial imports have shown which modules allow that."""
