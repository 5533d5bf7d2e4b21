"""From an archive to an unpacked app: found, read within bounds, kept as long as somebody uses it."""
