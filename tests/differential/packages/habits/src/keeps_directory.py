"""A temporary directory made when it is imported."""

import tempfile

DIRECTORY = tempfile.mkdtemp(prefix="keeps-directory-")
