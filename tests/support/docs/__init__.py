"""The documentation: its pages are checked, followed step by step, and built as a site."""
