"""Running source text: its fresh module, its annotations, and modules from memory."""

import base64
import json
import os

import cloudpickle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashpool.pool._child.serialization import user_modules
from flashpool.pool._child.wire import BadRequest


def test_code_runs_in_a_fresh_module(worker):
    assert worker.value(
        "import sys\ndef f(): return sys.modules['__flash_live__'].f is f, f.__module__"
    ) == (True, "__flash_live__")
    assert worker.value("def f(): return sorted(globals())") == [
        *(
            "__builtins__",
            "__doc__",
            "__file__",
            "__loader__",
            "__name__",
            "__package__",
            "__spec__",
        ),
        "f",
    ]


def test_dataclasses_enums_and_pickle_find_their_module(worker):
    code = """
import dataclasses, enum, pickle
@dataclasses.dataclass
class A:
    x: int = 1
    y: "list[int]" = dataclasses.field(default_factory=list)
class E(enum.Enum):
    ONE = 1
def f(): return pickle.loads(pickle.dumps(A(2))) == A(2), pickle.loads(pickle.dumps(E.ONE)) is E.ONE
"""
    assert worker.value(code) == (True, True)


def test_flashpools_future_imports_do_not_apply_to_user_code(worker):
    assert worker.value("def f(x: int = 1): return f.__annotations__") == {"x": int}


@pytest.mark.parametrize("module", ["inspect", "linecache"])
def test_inspect_finds_the_source(worker, module):
    code = f"""
import inspect, {module}
def f():
    import pack.part
    return inspect.getsource(f), inspect.getsource(C), inspect.getsource(pack.part.g)
class C:
    x = 1
"""
    sources = worker.value(code, modules={"pack/part.py": "import os\ndef g():\n    return 1\n"})
    assert [s.splitlines()[0] for s in sources] == ["def f():", "class C:", "def g():"]


def test_children_of_multiprocessing_do_not_run_main_again(worker):
    code = """
import multiprocessing, operator
def f():
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.map(operator.neg, [1, 2])
"""
    assert worker.value(code) == [-1, -2]


ITEM = "def f(item: Item) -> Item:\n    return item"


@pytest.mark.parametrize(
    "code",
    [
        ITEM,
        "def f(\n    a: int,\n    item: schemas.Item | None = None,\n):\n    return a",
        "async def f(*items: Item, **more: List[Item]): return items[0]",
        "class Other:\n    item: Item\n    def g(self, x: Item): pass\ndef f(x): return x",
        "item: Item = 3\ndef f(x): return x",
        "def other(a: Undefined): pass\n" + ITEM,
    ],
)
def test_annotations_that_only_the_client_can_evaluate_are_tolerated(worker, code):
    assert worker.value(code, 5) == 5


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("def f(a=DEFAULT): pass", "DEFAULT"),
        ("def f(a: Item = Item()): pass", "Item"),
        ("def f(): pass\nundefined", "undefined"),
        ("def g(): return missing\ndef f(a: int): pass\ng()", "missing"),
        ("@decorate\ndef f(a: int): pass", "decorate"),
        ("raise NameError('mine')", "mine"),
        ("def f(a: Item): pass\nimport nothing", "Item"),
    ],
)
def test_other_undefined_names_raise(worker, code, name):
    answer = worker(code)
    assert answer.error_type == ("NameError" if "import" not in code else "ModuleNotFoundError")
    assert name in answer.error or "nothing" in answer.error


ONCE = """import sys
sys.runs = getattr(sys, 'runs', 0) + 1
{}
def f(*x): return sys.runs
"""


@pytest.mark.parametrize(
    "rest",
    [
        "def g(item: Item, *more: 'x', n: int = 1, **kw: List[Item]) -> Item: pass",
        "async def g(\n  item: Item[\n    int],\n): pass",
        (
            "class A:\n    sys.runs += 10\n    class Own: pass\n    b: Item = 1\n"
            "    def g(self, x: Item, y: Own) -> 'A': pass\nassert sys.runs == 11\nsys.runs = 1\n"
            "assert A.__annotations__ == {'b': 'Item'}\n"
            "assert A.g.__annotations__ == {'x': 'Item', 'y': A.Own, 'return': 'A'}"
        ),
        "try:\n    def g(x: Item): pass\nexcept NameError: raise SystemExit",
        (
            "def default():\n    sys.runs += 1\n    return 1\n"
            "def g(x: Item = default()): pass\nassert sys.runs == 2\nsys.runs = 1"
        ),
        "if sys:\n    for _ in '12':\n        item: np.ndarray = 3",
        (
            "from collections import *\ndef g(x: OrderedDict, y: Item): pass\n"
            "assert g.__annotations__ == {'x': OrderedDict, 'y': 'Item'}"
        ),
        (
            "T = int\ndef g(x: T, y: 'list[T]', z: list[Item]): pass\n"
            "assert g.__annotations__ == {'x': int, 'y': 'list[T]', 'z': 'list[Item]'}"
        ),
    ],
)
def test_code_runs_once_whatever_names_annotations_use(worker, rest):
    assert worker.value(ONCE.format(rest)) == 1


def test_handling_of_annotations_leaves_no_trace(worker):
    code = "def f(x: Item = 1): return [n for n in globals() if 'known' in n], f.__annotations__"
    assert worker.value(code) == ([], {"x": "Item"})


def test_docstring_and_future_imports_stay_first(worker):
    code = '"""Words."""\nfrom __future__ import generator_stop\ndef f(x: Item = 1): return __doc__'
    assert worker.value(code) == "Words."


def test_code_runs_once_when_a_default_is_missing(worker):
    code = "import sys\nsys.runs = getattr(sys, 'runs', 0) + 1\ndef f(a=MISSING): pass"
    runs = worker.python(
        "import sys\nfrom _flashpool.serialization import user_code\n"
        f"try: user_code.run_source({code!r}, 'f')\nexcept NameError: result = sys.runs"
    )
    assert runs == 1


def test_syntax_errors_show_their_line(worker):
    answer = worker("def f():\n    return 1 +\n")
    assert answer.error_type == "SyntaxError"
    assert 'File "flash:f", line 2' in answer.error
    assert "return 1 +" in answer.error


def test_a_second_text_of_the_same_name_shows_its_own_lines(worker):
    text = worker.python(
        "from _flashpool.serialization import user_code, exception_pickling\n"
        "result = []\n"
        "for word in ('one', 'two'):\n"
        "    try: user_code.run_source(f'def f(): raise ValueError # {word}', 'f').f()\n"
        "    except ValueError as e: result.append(exception_pickling.capture(e)[0]['error'])\n"
    )
    assert "# one" in text[0]
    assert "# two" in text[1]
    assert "# one" not in text[1]


# -- Modules ------------------------------------------------------------------------------

PACKAGE = {
    "helper.py": "from pack.deep.er import VALUE\ndef value(): return VALUE",
    "pack/deep/er.py": "from . import sibling\nfrom ..top import T\nVALUE = sibling.S + T",
    "pack/deep/sibling.py": "S = 40",
    "pack/top.py": "T = 2",
    "real/__init__.py": "from .part import P as Q",
    "real/part.py": "P = 9",
}


def test_modules_import_at_the_top_in_the_call_and_in_its_awaits(worker):
    code = """
import helper
async def f():
    import asyncio
    await asyncio.sleep(0)
    from real import Q
    def in_thread():
        import real.part
        return real.part.P
    return helper.value(), Q, await asyncio.get_running_loop().run_in_executor(None, in_thread)
"""
    assert worker.value(code, modules=PACKAGE) == (42, 9, 9)


def test_modules_are_never_stale_across_calls(worker):
    for number in range(3):
        modules = {"helper.py": f"N = {number}", "pack/part.py": f"N = {number}"}
        assert worker.value(
            "import helper, pack.part\ndef f(): return helper.N, pack.part.N", modules=modules
        ) == (number, number)


def test_modules_are_not_stale_within_one_process_either(worker):
    assert worker.python(
        "import sys\nfrom _flashpool.serialization import user_modules\n"
        "result = []\n"
        "for n in (1, 2):\n"
        "    user_modules.install_modules({'helper/part.py': f'N = {n}', f'only{n}.py': ''})\n"
        "    import helper.part; result.append(helper.part.N)\n"
        "try: import only1\n"
        "except ImportError: result.append('gone')\n"
        "result.append(len([f for f in sys.meta_path if type(f).__name__ == 'Finder']))\n"
    ) == [1, 2, "gone", 1]


def test_modules_shadow_installed_packages_except_the_runtimes(worker):
    modules = {"pip.py": "MINE = 1", "psutil/part.py": "MINE = 2"}
    code = "import cloudpickle\nimport pip, psutil.part\ndef f(): return pip.MINE, psutil.part.MINE"
    assert worker.value(code, modules=modules) == (1, 2)


def test_modules_preloaded_by_the_zygote_are_replaced(worker):
    assert (
        worker.python(
            "import sys, types\nfrom _flashpool.serialization import user_modules\n"
            "sys.modules['helper'] = types.ModuleType('helper')\n"
            "sys.modules['helper.part'] = types.ModuleType('helper.part')\n"
            "user_modules.install_modules({'helper/part.py': 'N = 7'})\n"
            "import helper.part\nresult = helper.part.N\n"
        )
        == 7
    )


def test_a_folder_joins_an_installed_namespace_package(worker, tmp_path):
    (tmp_path / "space").mkdir()
    (tmp_path / "space" / "installed.py").write_text("I = 1")
    code = f"import sys\nsys.path.append({str(tmp_path)!r})\nimport space.mine, space.installed\ndef f(): return space.mine.M, space.installed.I"
    assert worker.value(code, modules={"space/mine.py": "M = 2"}) == (2, 1)
    # A child process does not have flashpool's finder.
    say = "import space.mine, space.installed; print(space.mine.M + space.installed.I)"
    assert (
        worker.python(
            "import os, subprocess, sys\nfrom _flashpool.serialization import user_modules\n"
            f"sys.path.append({str(tmp_path)!r})\n"
            "user_modules.install_modules({'space/mine.py': 'M = 2'})\n"
            f"os.environ['PYTHONPATH'] += ':' + {str(tmp_path)!r}\n"
            f"result = subprocess.check_output([sys.executable, '-c', {say!r}], text=True)\n"
        )
        == "3\n"
    )


def test_a_package_wins_over_the_module_beside_it(worker):
    modules = {"a/__init__.py": "N = 1", "a.py": "N = 2", "b.py": "N = 3", "b/__init__.py": "N = 4"}
    assert worker.value("import a, b\ndef f(): return a.N, b.N", modules=modules) == (1, 4)


def test_modules_know_their_file_and_package(worker):
    code = """
import os, pack.part as p, pack
def f():
    return p.__name__, p.__package__, p.__file__, p.__spec__.origin, list(pack.__path__), os.path.isfile(p.__file__)
"""
    name, package, file, origin, path, there = worker.value(code, modules={"pack/part.py": ""})
    assert (name, package, there) == ("pack.part", "pack", True)
    assert file == origin == f"{path[0]}/part.py"
    assert not os.path.exists(path[0]), "it is gone with the call"


WALK = """
import importlib.resources, os, pkgutil, subprocess, sys
def f():
    import pkg, helper
    here = os.path.dirname(helper.__file__)
    say = [sys.executable, "-c", "import helper, pkg.a; print(helper.X)"]
    alone = {**os.environ, "PYTHONPATH": here}
    return (
        [m.name for m in pkgutil.walk_packages(pkg.__path__, "pkg.")],
        helper.X,
        subprocess.check_output(say).strip(),
        subprocess.check_output(say, env=alone).strip(),
        importlib.resources.files(pkg).joinpath("a.py").read_text(),
        sys.path[0] == here,
    )
"""


def test_modules_can_be_opened_as_files(worker):
    modules = {"helper.py": "\ufeffX = 1\n", "pkg/__init__.py": "", "pkg/a.py": "A = 1\n"}
    assert worker.value(WALK, modules=modules) == (["pkg.a"], 1, b"1", b"1", "A = 1\n", True)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_children_find_modules(worker, method):
    code = """
def f(method):
    import helper, multiprocessing as mp, pack.part
    with mp.get_context(method).Pool(1) as p:
        return p.map_async(helper.sq, [1, 2]).get(20), p.map_async(pack.part.sq, [3]).get(20)
"""
    text = "def sq(x):\n    return x * x\n"
    modules = {"helper.py": text, "pack/part.py": text}
    assert worker.value(code, method, modules=modules) == ([1, 4], [9])


def test_shipped_modules_are_not_reported_as_installed(worker):
    """Only what any process could import may be preloaded."""
    code = """
import helper, pack.part, json, sys
def f():
    from _flashpool.running import outcome
    return outcome.installed(["helper", "pack", "pack.part", "json"])
"""
    assert worker.value(code, modules={"helper.py": "", "pack/part.py": ""}) == ["json"]


def test_reload_runs_the_text_again(worker):
    code = "import helper, importlib\ndef f():\n helper.N = 0\n return importlib.reload(helper).N"
    assert worker.value(code, modules={"helper.py": "N = 4"}) == 4


def test_nothing_is_written_where_the_call_works(worker, tmp_path):
    code = f"import os\nos.chdir({str(tmp_path)!r})\nimport helper\ndef f(): return os.listdir('.')"
    assert worker.value(code, modules={"helper.py": ""}) == []


def test_a_broken_module_shows_its_lines_and_none_of_flashpool(worker):
    answer = worker("import helper\ndef f(): pass", modules={"helper.py": "x = 1\n1 / 0\n"})
    assert [(f[0], f[1]) for f in answer.details["traceback"]] == [
        ("flash:f", 1),
        (answer.details["traceback"][1][0], 2),
    ]
    assert answer.details["traceback"][1][0].endswith("/modules/helper.py")
    assert "1 / 0" in answer.error
    answer = worker("import helper\ndef f(): pass", modules={"helper.py": "def ("})
    assert answer.error_type == "SyntaxError"


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/etc/passwd.py",
            "../up.py",
            "a/../b.py",
            "./a.py",
            "a//b.py",
            "a\\b.py",
            "a.txt",
            "a",
            "",
            ".py",
            "/.py",
        ),
        *(
            "a-b.py",
            "1a.py",
            "a b.py",
            "a/.py",
            "a.b.py",
            "é\ud800.py",
            "a\0.py",
            "a.py/",
            "__init__.py",
        ),
        *(
            "json.py",
            "os/path.py",
            "sitecustomize.py",
            "usercustomize/__init__.py",
            "__main__.py",
            "sys.py",
            "_pickle.py",
        ),
        *("cloudpickle.py", "tblib/__init__.py", "_flashpool/wire.py", "/".join("a" * 21) + ".py"),
    ],
)
def test_paths_that_are_not_modules_are_refused(path):
    with pytest.raises(BadRequest, match=r"^modules: "):
        user_modules.install_modules({path: ""})


def test_too_many_and_too_large_modules_are_refused():
    with pytest.raises(BadRequest, match="1001 files"):
        user_modules.install_modules({f"m{i}.py": "" for i in range(1001)})
    with pytest.raises(BadRequest, match="bytes of source"):
        user_modules.install_modules({f"m{i}.py": "é" * (3 << 20) for i in range(2)})
    with pytest.raises(BadRequest, match="NUL"):
        user_modules.install_modules({"m.py": "\0"})
    with pytest.raises(BadRequest, match="surrogate"):
        user_modules.install_modules({"m.py": "\udc00"})


@given(st.text())
def test_a_path_is_a_module_name_or_refused(path):
    try:
        parts = user_modules._module_parts(path)
    except BadRequest:
        return
    assert path == "/".join(parts) + ".py"
    assert all(part.isidentifier() for part in parts)


def test_a_thousand_modules_are_within_the_default_limits(worker):
    modules = {f"pack/m{i}.py": f"N = {i}" for i in range(1000)}
    request = {
        "function_name": "f",
        "function_code": "from pack import m7, m999\ndef f(): return m7.N + m999.N",
    }
    answer = worker.body(json.dumps({**request, "modules": modules}).encode())
    assert cloudpickle.loads(base64.b64decode(answer.result)) == 1006
