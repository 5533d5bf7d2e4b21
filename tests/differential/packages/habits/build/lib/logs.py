"""Logs when it is imported, while nothing has configured logging."""

import logging

logging.getLogger("logs").warning("logs: imported")
