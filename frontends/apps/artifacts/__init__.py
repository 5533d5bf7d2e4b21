"""From an archive to an unpacked app: found, read within limits, kept while it is used."""
