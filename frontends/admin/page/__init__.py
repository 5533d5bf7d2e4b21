"""The page of the admin listener: files that are served unchanged."""
