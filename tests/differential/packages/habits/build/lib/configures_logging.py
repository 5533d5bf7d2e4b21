"""Configures the root logger when it is imported, as scripts do."""

import logging

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
logging.getLogger("configures_logging").info("configured")
