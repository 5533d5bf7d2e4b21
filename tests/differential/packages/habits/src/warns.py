"""Warns when it is imported."""

import warnings

warnings.warn("warns: imported", stacklevel=1)
