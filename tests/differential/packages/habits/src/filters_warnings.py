"""Silences warnings of the whole process when it is imported."""

import warnings

warnings.filterwarnings("ignore", category=UserWarning)
warnings.filterwarnings("error", message="errors by filter")
