"""Finds what a source changes in its process that imports read, judged by its text.

    os.environ["HF_HOME"] = ...           env:HF_HOME
    os.environ.update(...), putenv(name)  env:*        any variable
    os.chdir(...)                         cwd
    sys.argv = ..., setlocale(...)        argv, locale
    warnings.simplefilter("error")        warnings
    random.seed(...)                      random       an import that draws would get other numbers
    os.environ.get("X")                   look:X       a variable that an import sets is not set yet
    sys.path.insert(...), gevent          package:*    any module may be replaced by another

The source is searched as text: a server does not parse what others send. Code that only reads
variables, or appends to the search path, changes nothing for imports; code that the search does not
understand counts as a change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

#: A text without any of these touches nothing.
_SUSPICIOUS: Final = re.compile(
    r"environ|getenv|putenv|unsetenv|chdir|sys\s*\.|from\s+sys\s|gevent|eventlet"
    r"|argv|setlocale|simplefilter|filterwarnings|seed|setstate|set_state"
)
_OTHER_MODULES: Final = re.compile(
    r"sys\s*\.\s*path\b(?!\s*\.\s*(?:append|extend|copy|index|count)\b)|sys\s*\.\s*modules\b"
    r"|sys\s*\.\s*(?:meta_path|path_hooks|path_importer_cache)\b"
    r"|from\s+sys\s+import\b[^\n;]*\b(?:path\w*|modules|meta_path|\*)|\bgevent\b|\beventlet\b"
)
_OTHERS: Final = {
    "argv": re.compile(r"\bargv\b"),
    "random": re.compile(r"\b(?:manual_)?seed\w*\s*\(|\bset_?state\s*\("),
    "locale": re.compile(r"\bsetlocale\b"),
    # Ignoring more warnings changes no import that raises none anyway.
    "warnings": re.compile(
        r"""\b(?:simplefilter|filterwarnings)\s*\((?!\s*(?:action\s*=\s*)?["']ignore)"""
    ),
}
_TEXT: Final = r"""\s*(?:["'](\w+)["'])"""
#: What follows the name of the environment's mapping if the code only reads it.
_ONLY_READ: Final = re.compile(
    r"""\s*\[\s*[^\]\n]*\](?!\s*(?:=(?!=)|[-+|*/&%^@]=|<<=|>>=|//=|\*\*=))"""
    r"""|\s*\.\s*(?:get|copy|items|keys|values|__contains__|__getitem__)\s*\("""
    r"""|\s*(?:[:,)}\]]|and\b|or\b|if\b|else\b|==|!=|$)"""
)
_PART: Final = re.compile(r"\s*[\[.]")
_TARGETS: Final = re.compile(r"\s*\[[^\]\n]*\]\s*[,:][^\n]*=")
_ASSIGNED: Final = re.compile(rf"\s*\[{_TEXT}\s*\]")
_CALLED: Final = re.compile(rf"\s*\.\s*(?:setdefault|pop|__setitem__|__delitem__)\s*\({_TEXT}")
_LOOKED_AT: Final = re.compile(rf"\s*\.\s*(?:get|__getitem__|__contains__)\s*\({_TEXT}")
_LOOK: Final = re.compile(rf"\bgetenv\s*\({_TEXT}")
_ENVIRON: Final = re.compile(r"\benvironb?\b")
_IMPORTED: Final = re.compile(r"(?:from|import)[\w\s.,]*$")
_ALIASED: Final = re.compile(r"\s+as\b")
_DELETED: Final = re.compile(r"\bdel\s+(?:\w+\s*\.\s*)?$")
#: After these, the mapping is handed on to code that may change it; a copy is harmless.
_HANDED_ON: Final = re.compile(
    r"(?:\bin\s+|\bdict\(\s*|\*\*\s*|\benv\s*=\s*|\blen\(\s*|\bsorted\(\s*)$"
)
_OWNER: Final = re.compile(r"(?:\bos\s*\.\s*)?$")
_SET: Final = re.compile(rf"\b(?:putenv|unsetenv)\s*\({_TEXT}?")
_IMPORT: Final = re.compile(r"(?:^|[\n;:])[ \t]*(?:from[ \t]+([\w.]+)|import[ \t]+([\w., \t]+))")
_ANY: Final = "env:*"


def touches(text: str) -> set[str]:
    """Return what the source may change, in the names of `preloading`."""
    if _SUSPICIOUS.search(text) is None:
        return set()
    found = set(_variables(text))
    if "chdir" in text:
        found.add("cwd")
    found.update(what for what, pattern in _OTHERS.items() if pattern.search(text))
    if _OTHER_MODULES.search(text):
        found.add("package:*")
    return found


def _variables(text: str) -> Iterator[str]:
    for match in _ENVIRON.finditer(text):
        yield from _of_environ(text[: match.start()], text[match.end() :])
    for match in _LOOK.finditer(text):
        yield f"look:{match[1]}"
    for match in _SET.finditer(text):
        yield f"env:{match[1]}" if match[1] else _ANY


def _of_environ(before: str, after: str) -> Iterator[str]:
    line, rest = before[before.rfind("\n") + 1 :], after
    if _IMPORTED.search(line):
        if _ALIASED.match(rest):
            yield _ANY
        return
    owner = _OWNER.search(line)
    lead = line[: owner.start()] if owner else line
    if _DELETED.search(line) and (named := _ASSIGNED.match(rest)):
        yield f"env:{named[1]}"
    elif (named := _CALLED.match(rest)) or _is_assigned(lead, rest):
        named = named or _ASSIGNED.match(rest)
        yield f"env:{named[1]}" if named else _ANY
    elif _ONLY_READ.match(rest) and (named := _ASSIGNED.match(rest) or _LOOKED_AT.match(rest)):
        yield f"look:{named[1]}"
    elif not (_ONLY_READ.match(rest) and (_PART.match(rest) or _HANDED_ON.search(lead))):
        yield _ANY


def _is_assigned(lead: str, rest: str) -> bool:
    if not rest.lstrip().startswith("["):
        return False
    # At the beginning of a statement, the name may be one of several targets, or be annotated.
    return _ONLY_READ.match(rest) is None or (not lead.strip() and bool(_TARGETS.match(rest)))


def imports(text: str) -> set[str]:
    """Return the packages that the import statements of a source name."""
    found = set()
    for match in _IMPORT.finditer(text):
        names = match[1] or match[2]
        for name in names.split(","):
            if top := name.split(" as ")[0].strip().partition(".")[0]:
                found.add(top)
    return found
