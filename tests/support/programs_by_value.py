"""Programs that each define ``f``: a pickled copy of ``f`` must return what ``f`` returns."""

CALLABLES = {
    "lru_cache": r"""
import functools
@functools.lru_cache(maxsize=7, typed=True)
def t(n): return [n]
def f(): return t(3), t.cache_parameters(), t.cache_info()[0], t.__name__
""",
    "cache recursive": r"""
import functools
@functools.cache
def fib(n): return n if n < 2 else fib(n-1)+fib(n-2)
def f(): return fib(50)
""",
    "itself cached": r"""
import functools
@functools.cache
def f(): return 5
""",
    "itself cached recursive": r"""
import functools
@functools.cache
def f(n=5): return f(n-1)+1 if n else 0
""",
    "lru method": r"""
import functools
class B:
 @functools.lru_cache
 def big(self, x): return 2*x
def f(): return B().big(2)
""",
    "lru static": r"""
import functools
class B:
 @staticmethod
 @functools.lru_cache
 def big(x): return 2*x
 @classmethod
 @functools.lru_cache
 def c(cls, x): return cls.__name__*x
def f(): return B.big(2), B.c(2)
""",
    "lru on instance": r"""
import functools
class F:
 def __init__(self): self.f = functools.lru_cache(maxsize=8)(self.f)
 def f(self, n): return n*F.g(n)
 @staticmethod
 @functools.lru_cache(maxsize=8)
 def g(n): return n
x = F()
def f(): return x.f(3)
""",
    "lru closure": r"""
import functools
def mk(k):
 @functools.lru_cache
 def g(x): return x*k
 return g
g = mk(4)
def f(): return g(3)
""",
    "lru of builtin": r"""
import functools
g = functools.lru_cache(len)
def f(): return g('abc')
""",
    "lru lambda": r"""
import functools
g = functools.lru_cache(lambda x: x+1)
def f(): return g(1)
""",
    "lru attrs": r"""
import functools
@functools.lru_cache
def g(x): return x
g.tag = 'T'
def f(): return g.tag, g.__wrapped__(3), g.__doc__, g.__module__
""",
    "cached_property": r"""
import functools
class A:
 def __init__(self, n): self.n = n
 @functools.cached_property
 def twice(self): return 2*self.n
 def go(self, x): return self.twice + x
a = A(2)
def f(): return a.go(1), a.__dict__['twice']
""",
    "singledispatch": r"""
import functools
@functools.singledispatch
def d(x): return 'o'
@d.register
def _(x: int): return 'i'
@d.register(list)
def _(x): return [d(y) for y in x]
d(3)
def f(): return d(2), d('x'), d([1,'a']), len(d.registry), d.__name__
""",
    "singledispatch abc": r"""
import functools, collections.abc as c
@functools.singledispatch
def d(x): return 'o'
@d.register(c.Mapping)
def _(x): return 'm'
d({})
def f(): return d({}), d(1)
""",
    "singledispatchmethod": r"""
import functools
class S:
 @functools.singledispatchmethod
 def m(self, x): return 'o'
 @m.register
 def _(self, x: int): return 'i'
S().m(1)
def f(): return S().m(1), S().m('')
""",
    "partial": r"""
import functools
def g(a,b): return a+b
p = functools.partial(g, 1, b=3)
def f(): return p()
""",
    "partialmethod": r"""
import functools
class P:
 def g(self,a,b): return a+b
 h = functools.partialmethod(g, 1)
def f(): return P().h(2)
""",
    "contextmanager deco": r"""
import contextlib
out = []
@contextlib.contextmanager
def c(a=1):
 out.append(a)
 yield 2
 out.append('after')
@c(5)
def f(): return list(out)
""",
    "async contextmanager deco": r"""
import contextlib
@contextlib.asynccontextmanager
async def c():
 yield 2
@c()
async def g(): return 3
def f():
 import asyncio
 return asyncio.run(g())
""",
    "sentinel reduce": r"""
class S:
 def __reduce__(s): return 'MISSING'
 def __repr__(s): return 'M'
MISSING = S()
def f(x=MISSING): return x is MISSING, repr(x)
""",
}
TYPES = {
    "newtype": r"""
import typing
U = typing.NewType('U', int)
def g(x: U) -> U: return U(x)
def f(): return g(3), U.__supertype__, U.__name__
""",
    "paramspec": r"""
import typing
P = typing.ParamSpec('P')
R = typing.TypeVar('R')
def deco(g: typing.Callable[P, R]) -> typing.Callable[P, R]:
 def inner(*a: P.args, **k: P.kwargs) -> R: return g(*a, **k)
 return inner
@deco
def f(): return 3
""",
    "typevartuple": r"""
import sys, typing
Ts = typing.TypeVarTuple('Ts') if sys.version_info >= (3,11) else 1
def g(*a: Ts): return a
def f(): return g(1)
""",
    "typealias": r"""
import sys
if sys.version_info >= (3,12):
 exec('type A = int | str\ntype L[T] = list[T]\ndef gen[T](x: T) -> T: return x\nclass GC[T]:\n  def m(self, x: T) -> T: return x')
else:
 A = L = int; gen = lambda x: x
 class GC:
  def m(s, x): return x
def f(): return str(A), str(L), gen(1), GC().m(2)
""",
    "typing": r"""
import typing
class N(typing.NamedTuple):
 a: int = 1
class D(typing.TypedDict, total=False):
 a: int
class Pr(typing.Protocol):
 def m(self) -> int: ...
@typing.runtime_checkable
class Q(typing.Protocol):
 def m(self) -> int: ...
class I(Pr):
 def m(self): return 1
def f(): return N(), D(a=1), I().m(), isinstance(I(), Q)
""",
    "generic alias of own": r"""
import typing
T = typing.TypeVar('T')
class G(typing.Generic[T]): pass
A = G[int]
class H(G[str]): pass
def f(): return A.__args__, H.__orig_bases__[0].__args__
""",
}
CLASSES = {
    "enum": r"""
import enum
class E(enum.Enum):
 A = 1
 B = 2
 @property
 def d(self): return self.value*2
def f(): return E.A.d, E(2).name, list(E)[0] is E.A, E['B'].value
""",
    "enum alias": r"""
import enum
class E(enum.Enum):
 A = 1
 B = 1
def f(): return E.B is E.A, list(E.__members__)
""",
    "intflag": r"""
import enum
class F(enum.IntFlag):
 A = 1
 B = 2
 C = A | B
def f(): return int(F.A|F.B), (F.A|F.B) is F.C, F(3).name, F.A in F.C, list(F)
""",
    "intflag odd": r"""
import enum
class F(enum.IntFlag):
 R0 = 11
 R1 = 37
v = F.R1
def f(): return int(v), v is F.R1
""",
    "flag": r"""
import enum
class F(enum.Flag):
 A = enum.auto()
 B = enum.auto()
v = F.A|F.B
def f(): return v.value, F.A in v, ~F.A is F.B
""",
    "strenum": r"""
import enum
class S(str, enum.Enum):
 A = 'a'
 def __str__(self): return self.value
def f(): return str(S.A), S('a') is S.A, f'{S.A}'
""",
    "enum new": r"""
import enum
class E(enum.Enum):
 A = (1, 'x')
 B = (2, 'y')
 def __new__(cls, v, label):
  o = object.__new__(cls); o._value_ = v; o.label = label; return o
def f(): return E.A.label, E(2).label
""",
    "enum init": r"""
import enum
class E(enum.Enum):
 A = (1, 'x')
 def __init__(self, v, label): self.label = label
def f(): return E.A.label
""",
    "enum auto": r"""
import enum
class E(enum.Enum):
 def _generate_next_value_(name, s, c, l): return name.lower()
 A = enum.auto()
 B = enum.auto()
def f(): return E.A.value, E.B.value
""",
    "dataclass": r"""
import dataclasses
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class D:
 a: int
 b: list = dataclasses.field(default_factory=list)
def f(): return dataclasses.asdict(D(a=1)), dataclasses.replace(D(a=1), a=2).a, dataclasses.fields(D)[0].name
""",
    "dataclass kw_only marker": r"""
import dataclasses
@dataclasses.dataclass
class D:
 a: int
 _: dataclasses.KW_ONLY
 b: int = 2
 c: int = dataclasses.field(default=dataclasses.MISSING)
def f(): return dataclasses.asdict(D(1, c=3)), dataclasses.fields(D)[0].default is dataclasses.MISSING
""",
    "dataclass missing": r"""
import dataclasses
@dataclasses.dataclass
class D:
 a: int
@dataclasses.dataclass
class E(D):
 b: int = 3
def f():
 @dataclasses.dataclass
 class G(E):
  c: int = 4
 return dataclasses.asdict(G(1)), dataclasses.fields(D)[0].default is dataclasses.MISSING
""",
    "dataclass inherits later": r"""
import dataclasses
@dataclasses.dataclass
class D:
 a: int
 b: int = dataclasses.field(default=2, kw_only=True)
def f():
 @dataclasses.dataclass
 class G(D):
  c: int
 return dataclasses.asdict(G(1, 5))
""",
    "super": r"""
class A:
 def m(self): return 1
class B(A):
 def m(self): return super().m()+1
 @classmethod
 def k(cls): return __class__.__name__
def f(): return B().m(), B.k()
""",
    "init_subclass kw": r"""
class Base:
 def __init_subclass__(cls, /, arg, **k):
  super().__init_subclass__(**k); cls.arg = arg
class C(Base, arg='hello'): pass
def f(): return C.arg, C().arg
""",
    "metaclass kw": r"""
class M(type):
 def __new__(m, name, bases, ns, *, tag, **k): c = super().__new__(m, name, bases, ns); c.tag = tag; return c
 def __init__(c, name, bases, ns, *, tag, **k): super().__init__(name, bases, ns)
class C(metaclass=M, tag=3): pass
def f(): return C.tag
""",
    "metaclass": r"""
class M(type):
 reg = {}
 def __init__(c, n, b, ns): super().__init__(n,b,ns); M.reg[n] = c
 def __call__(c, *a): return super().__call__(*a)
class C(metaclass=M):
 def m(s): return 4
def f(): return C().m(), list(M.reg)
""",
    "property subclass": r"""
class dec(property): pass
class C:
 @dec
 def x(s): return 3
def f(): return C().x, type(C.__dict__['x']).__name__
""",
    "property own": r"""
class dec(property):
 def __init__(s, fn): s.fn = fn
 def __get__(s, o, c): return s if o is None else 'dec_%s' % s.fn(o)
class C:
 @dec
 def x(s): return 3
def f(): return C().x
""",
    "classmethod subclass": r"""
class cm(classmethod): pass
class C:
 @cm
 def x(c): return c.__name__
def f(): return C.x()
""",
    "override same": r"""
class A:
 v = 1
class B(A):
 v = 1
def f():
 A.v = 2
 return B.v, 'v' in vars(B)
""",
    "abc": r"""
import abc
class A(abc.ABC):
 @abc.abstractmethod
 def m(s): ...
 @property
 @abc.abstractmethod
 def p(s): ...
class B(A):
 def m(s): return 1
 p = 2
A.register(int)
def f():
 try: A(); return 'no'
 except TypeError: return B().m(), isinstance(3, A)
""",
    "nested class": r"""
class A:
 class B:
  def m(s): return A.B.__qualname__
def f(): return A.B().m()
""",
    "slots": r"""
class A:
 __slots__ = ('a', '__weakref__')
 def __init__(s): s.a = 1
x = A()
def f(): return x.a
""",
    "slots private": r"""
class A:
 __slots__ = ('__a',)
 def __init__(s): s.__a = 1
 def g(s): return s.__a
x = A()
def f(): return x.g(), A().g()
""",
    "slots str": r"""
class A:
 __slots__ = 'a'
class B(A):
 __slots__ = {'b': 'doc'}
def f():
 x = B(); x.a = 1; x.b = 2; return x.a + x.b
""",
    "type of lock": r"""
import threading
L = type(threading.Lock())
def f(): return isinstance(threading.Lock(), L)
""",
}
STATE = {
    "contextvar": r"""
import contextvars
v = contextvars.ContextVar('v')
w = contextvars.ContextVar('w', default=5)
w.set(6)
def f():
 v.set(1)
 return v.get(), w.get(), v.name
""",
    "contextvar default": r"""
import contextvars
w = contextvars.ContextVar('w', default=[])
def f(): return w.get()
""",
    "lock": r"""
import threading
L = threading.Lock()
R = threading.RLock()
def f():
 with L, R: return L.locked()
""",
    "threading objects": r"""
import threading
E = threading.Event(); C = threading.Condition(); S = threading.Semaphore(2); B = threading.Barrier(1)
E.set()
def f():
 with C: pass
 S.acquire(); B.wait()
 return E.is_set()
""",
    "lock in class": r"""
import threading
class C:
 _lock = threading.Lock()
 n = 0
 @classmethod
 def inc(c):
  with c._lock: c.n += 1; return c.n
def f(): return C.inc()
""",
    "local": r"""
import threading
L = threading.local()
L.x = 1
def f():
 L.y = 2
 return L.x, L.y
""",
    "queue": r"""
import queue
Q = queue.Queue()
Q.put(3)
S = queue.SimpleQueue()
def f(): S.put(1); return Q.get(timeout=1), S.get()
""",
    "weakref": r"""
import weakref
class A: pass
a = A()
r = weakref.ref(a)
def f(): return r() is a
""",
    "weak containers": r"""
import weakref
class A: pass
a = A()
k = weakref.WeakKeyDictionary({a: 1}); v = weakref.WeakValueDictionary({'a': a}); s = weakref.WeakSet([a])
def f(): return k[a], v['a'] is a, a in s
""",
    "weak cache in class": r"""
import weakref
class A:
 _cache = weakref.WeakValueDictionary()
 def __new__(c, k):
  o = c._cache.get(k)
  if o is None: o = c._cache[k] = super().__new__(c)
  return o
def f(): return A(1) is A(1) if False else (lambda a: A(1) is a)(A(1))
""",
    "struct": r"""
import struct
S = struct.Struct('<I')
def f(): return S.pack(1)
""",
    "random": r"""
import random
r = random.Random(3)
s = random.SystemRandom()
def f(): return r.random(), s.random() < 1
""",
    "getattr submodule": r"""
import concurrent.futures, concurrent
def f(): return getattr(concurrent, 'futures').__name__
""",
    "threadpool": r"""
import concurrent.futures as cf
EX = cf.ThreadPoolExecutor(2)
def f():
 with EX: return EX.submit(abs, -1).result(5)
""",
}
