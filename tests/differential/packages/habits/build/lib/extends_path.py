"""Makes more importable when it is imported: a directory, and a finder of its own."""

import importlib.abc
import sys

PLACE = "/extends-path/does-not-exist"


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        return None


sys.path.append(PLACE)
sys.meta_path.append(Finder())
