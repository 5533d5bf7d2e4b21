"""Sets the locale and the time zone of the process when it is imported."""

import locale
import os
import time

locale.setlocale(locale.LC_ALL, "C")
os.environ["TZ"] = "Pacific/Kiritimati"
time.tzset()
