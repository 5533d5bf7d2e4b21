"""Values of its thread and its context, set when it is imported."""

import contextvars
import threading

REQUEST = contextvars.ContextVar("REQUEST", default="none")
REQUEST.set("set at import")
LOCAL = threading.local()
LOCAL.value = "set at import"
MAIN_THREAD = threading.current_thread()
