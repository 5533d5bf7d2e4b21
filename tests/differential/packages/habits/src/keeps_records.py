"""Opens a log file and a database when it is imported."""

import logging
import os
import sqlite3
import tempfile

LOG_FILE = os.path.join(tempfile.gettempdir(), "keeps_records.log")
log = logging.getLogger("keeps_records")
log.addHandler(logging.FileHandler(LOG_FILE))
log.setLevel(logging.INFO)
log.propagate = False
DATABASE = sqlite3.connect(
    os.path.join(tempfile.gettempdir(), "keeps_records.db"), isolation_level=None, timeout=10
)
DATABASE.execute("create table if not exists records (tag text)")
