"""Prints when it is imported: through Python, and past it."""

import os
import sys

print("announces: imported")
print("announces: a remark", file=sys.stderr)
sys.stdout.flush()
os.write(1, b"announces: written to descriptor 1\n")
