"""Guards annotations that name objects which only the client has, before a source runs.

    def f(item: Item): ...  ->  def f(item: Item if KNOWN('Item') else 'Item'): ...

A function travels without its module, so ``Item`` may be undefined here. Such an annotation becomes
its own text, as ``from __future__ import annotations`` does for all annotations. Running the source
again after a failure is not possible: its first statements would run twice.

From Python 3.14 on, annotations are evaluated only when code asks for them, so this does nothing.
"""

from __future__ import annotations

import builtins
import re
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType
    from typing import Any

__all__ = ["guarded", "known"]

#: The name of `known` in the compiled source, which imports it first and deletes it at the end.
KNOWN = "__flash_known__"
_IMPORT = f"from {__name__} import known as {KNOWN}"
EAGER = sys.version_info < (3, 14)
#: The opcode that loads a name: the operation before the last, which returns the value.
_LOAD_NAME = compile("name", "", "eval").co_code[-4]
#: With more names, the argument of an operation does not identify the name.
_MOST_NAMES = 256
_OPTIMIZED = 0x1
_FUTURE_ANNOTATIONS = 0x1000000
_ONLY_AST = 0x400
#: Matches text that may be an annotation, and much other text.
_LIKELY = re.compile(r"->|\w\s*:[ \t]*[\w\"'(\[]")
_SCOPES_WITHIN = ("body", "orelse", "finalbody", "handlers", "cases")
_Code = type(compile("", "", "exec"))


def guarded(code: CodeType, text: str, filename: str) -> CodeType:
    """Return the same code, with annotations guarded if they may name something undefined."""
    if not EAGER or _LIKELY.search(text) is None:
        return code
    if code.co_flags & _FUTURE_ANNOTATIONS or not _loads_unknown_names(code):
        return code
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings were shown when `code` was compiled
        try:
            return _recompiled(text, filename) or code
        except (RecursionError, MemoryError):
            return code


def known(*names: str) -> bool:
    """Return whether the caller can look up these names."""
    frame = sys._getframe(1)
    scopes = (frame.f_locals, frame.f_globals, frame.f_builtins)
    return all(any(name in scope for scope in scopes) for name in names)


def _loads_unknown_names(code: CodeType) -> bool:
    """Return whether top-level code, or a class body, looks up a name that is not a builtin."""
    if code.co_name.startswith("<generic parameters"):
        return True
    if len(code.co_names) > _MOST_NAMES:
        return True
    operations = code.co_code
    for operation, argument in zip(operations[::2], operations[1::2], strict=True):
        if operation == _LOAD_NAME and code.co_names[argument] not in builtins.__dict__:
            return True
    return any(
        _loads_unknown_names(one)
        for one in code.co_consts
        if type(one) is _Code
        and (not one.co_flags & _OPTIMIZED or one.co_name.startswith("<generic"))
    )


def _recompiled(text: str, filename: str) -> CodeType | None:
    tree: Any = compile(text, filename, "exec", _ONLY_AST, dont_inherit=True)
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not sum(_guard(tree.body, lines, frozenset())):
        return None
    first = next((i for i, node in enumerate(tree.body) if not _comes_first(node)), 0)
    tree.body[first:first] = compile(_IMPORT, "", "exec", _ONLY_AST).body
    tree.body += compile(f"del {KNOWN}", "", "exec", _ONLY_AST).body
    return compile(tree, filename, "exec", dont_inherit=True)


def _comes_first(node: Any) -> bool:
    """Return whether a statement must stay first: a docstring, or an import from the future."""
    kind = type(node).__name__
    return kind == "Expr" or (kind == "ImportFrom" and node.module == "__future__")


def _guard(body: list[Any], lines: list[str], parameters: frozenset[str]) -> Iterator[bool]:
    """Guard the annotations that these statements evaluate; those inside functions are never
    evaluated.
    """
    for node in body:
        own = parameters | {one.name for one in getattr(node, "type_params", ())}
        kind = type(node).__name__
        if kind in ("FunctionDef", "AsyncFunctionDef"):
            a = node.args
            for one in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg):
                if one is not None:
                    yield _guard_field(one, "annotation", lines, own)
            yield _guard_field(node, "returns", lines, own)
        elif kind == "AnnAssign":
            yield _guard_field(node, "annotation", lines, own)
        else:
            for field in _SCOPES_WITHIN:
                yield from _guard(getattr(node, field, None) or [], lines, own)


def _guard_field(owner: Any, field: str, lines: list[str], parameters: frozenset[str]) -> bool:
    annotation = getattr(owner, field)
    if annotation is None or type(annotation).__name__ == "Starred":
        return False
    found = [node for node in _walk(annotation) if type(node).__name__ == "Name"]
    bound = {node.id for node in found if type(node.ctx).__name__ != "Load"} | parameters
    names = sorted({node.id for node in found} - bound - set(builtins.__dict__))
    if not names:
        return False
    text = f"0 if {KNOWN}(*{names!r}) else {_text_of(annotation, lines)!r}"
    choice: Any = compile(text, "", "eval", _ONLY_AST)
    places = ("lineno", "col_offset", "end_lineno", "end_col_offset")
    for node in _walk(choice.body):
        for place in places:
            if hasattr(node, place):
                setattr(node, place, getattr(annotation, place))
    choice.body.body = annotation
    setattr(owner, field, choice.body)
    return True


def _walk(node: Any) -> Iterator[Any]:
    """Like `ast.walk`, but without importing `ast`."""
    yield node
    for field in node._fields:
        value = getattr(node, field, None)
        for one in value if isinstance(value, list) else (value,):
            if hasattr(one, "_fields"):
                yield from _walk(one)


def _text_of(node: Any, lines: list[str]) -> str:
    """Return the source of an expression, on one line."""
    part = [line.encode() for line in lines[node.lineno - 1 : node.end_lineno]]
    part[-1] = part[-1][: node.end_col_offset]
    part[0] = part[0][node.col_offset :]
    return " ".join(line.decode().strip() for line in part)
