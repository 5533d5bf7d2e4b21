"""Modules imported ahead of calls: which may be, found out by trying."""
