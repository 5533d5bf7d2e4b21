"""A program: the source of a function that a plain Python and a call have to agree about.

    @program(...)                    a function of this repository, whose source travels
    program_text(NAME, CODE, ...)    a source with something beside its function

What a program returns has to be the same in every run, apart from what `fresh` names.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import pytest

#: All values of the result are fresh.
EVERYTHING: Final = "*"

#: What a group's environment has; the requirements of one group are built together.
#: `base` needs nothing but the server's own packages, `own` the modules of packages/habits.
GROUPS: Final[dict[str, tuple[str, ...]]] = {
    "base": (),
    "own": (),
    "data": (
        *("numpy", "pandas", "pyarrow", "scipy", "openpyxl", "xarray", "duckdb", "h5py"),
        *("tables", "zarr", "numexpr", "bottleneck", "dask", "fsspec"),
    ),
    "learning": (
        *("scikit-learn", "statsmodels", "lightgbm", "xgboost-cpu", "joblib", "networkx"),
        *("sympy", "numba", "nltk", "gensim", "onnxruntime"),
    ),
    "pictures": (
        *("matplotlib", "seaborn", "plotly", "bokeh", "altair", "pillow", "imageio"),
        *("scikit-image", "opencv-python-headless", "shapely", "pygame"),
    ),
    "web": (
        *("requests", "httpx", "aiohttp", "urllib3", "pydantic", "fastapi", "starlette", "flask"),
        *("django", "sqlalchemy", "psycopg2-binary", "pymongo", "redis", "boto3", "cryptography"),
        *("lxml", "beautifulsoup4", "jinja2", "grpcio", "protobuf", "websockets", "paramiko"),
        *("uvloop", "pyzmq", "openai", "anthropic", "structlog", "loguru"),
    ),
    "text": (
        *("transformers", "tokenizers", "huggingface_hub", "datasets", "safetensors", "spacy"),
        *("faker", "regex", "langchain-core", "tiktoken"),
    ),
    "small": (
        *("pyyaml", "orjson", "msgspec", "tqdm", "rich", "click", "attrs", "dill", "psutil"),
        *("msgpack", "lz4", "zstandard", "ujson", "simplejson", "tenacity", "cachetools"),
        *("python-dateutil", "pytz", "marshmallow", "peewee", "filelock", "trio", "sentry-sdk"),
    ),
    "polars": ("polars",),
    "gevent": ("gevent", "requests"),
    "jax": ("jax",),
    "torch": ("torch", "numpy"),
}

Form = Literal["cold", "warm", "many", "parallel", "instance"]
FORMS: Final[tuple[Form, ...]] = ("cold", "warm", "many", "parallel", "instance")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """One source, and what must be equal about its runs."""

    name: str
    group: str
    code: str
    entry: str
    #: Modules that are shipped with the request; in the plain form, files beside the script.
    modules: dict[str, str] = field(default_factory=dict)
    #: Variables of the request; in the plain form, of the process.
    env: dict[str, str] = field(default_factory=dict)
    #: Further fields of the request, which have no meaning in the plain form.
    fields: dict[str, Any] = field(default_factory=dict)
    #: Keys of the result whose values are different in every run (`EVERYTHING`: all).
    fresh: tuple[str, ...] = ()
    #: What the server's runs are compared with.
    like: Literal["plain", "cold"] = "plain"
    #: The function takes the path of a directory of its own, whose files are compared too.
    scratch: bool = False
    #: Its files are complete when its process has ended.
    at_exit: bool = False
    forms: tuple[Form, ...] = FORMS


#: What calls do not do yet as scripts do, with preloading or without.
LATER: Final = {
    "random_in_forked_children": "NumPy's generators are there before the children import them",
}

#: Every program, by name.
PROGRAMS: Final[dict[str, Program]] = {}


def program(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register the decorated function; it must need nothing of its module."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        text = textwrap.dedent(inspect.getsource(function))
        first = ast.parse(text).body[0].lineno
        code = "\n".join(text.splitlines()[first - 1 :]) + "\n"
        name = function.__name__
        scratch = "scratch" in inspect.signature(function).parameters
        _add(Program(name=name, code=code, entry=name, scratch=scratch, **options))
        return function

    return register


def program_text(name: str, code: str, **options: Any) -> None:
    """Register a source whose function is called `run`."""
    code = textwrap.dedent(code).strip() + "\n"
    scratch = "def run(scratch" in code
    _add(Program(name=name, code=code, entry="run", scratch=scratch, **options))


def _add(program: Program) -> None:
    assert program.name not in PROGRAMS, f"there are two programs {program.name}"
    assert program.group in GROUPS, program.group
    PROGRAMS[program.name] = program


def of_groups(groups: Sequence[str]) -> list[Program]:
    """One group after another, so that a run that is stopped has whole groups behind it."""
    return [program for group in groups for program in PROGRAMS.values() if program.group == group]


def as_parameters(programs: Sequence[Program]) -> list[Any]:
    """For a test that takes a program's name."""
    return [
        pytest.param(
            program.name,
            id=f"{program.group}:{program.name}",
            marks=[pytest.mark.xfail(reason=LATER.get(program.name, ""))] * (program.name in LATER),
        )
        for program in programs
    ]
