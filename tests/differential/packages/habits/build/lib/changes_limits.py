"""Changes limits and modes of the interpreter and the process when it is imported."""

import decimal
import gc
import os
import socket
import sys

sys.setrecursionlimit(4321)
sys.setswitchinterval(0.25)
decimal.getcontext().prec = 5
gc.disable()
socket.setdefaulttimeout(7.5)
os.umask(0o077)
