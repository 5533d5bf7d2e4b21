"""Packages that change much when they are imported, each in an environment of its own."""

from differential.programs import EVERYTHING, program


@program(group="polars")
def polars_groups():
    import polars

    frame = polars.DataFrame({"a": ["x", "y", "x"], "b": [1, 2, 3]})
    return frame.group_by("a").agg(polars.col("b").sum()).sort("a").to_dict(as_series=False)


@program(group="polars")
def polars_lazy(scratch):
    import os

    import polars

    path = os.path.join(scratch, "a.csv")
    polars.DataFrame({"n": range(100)}).write_csv(path)
    total = polars.scan_csv(path).filter(polars.col("n") % 2 == 0).sum().collect().item()
    os.remove(path)
    return [total, polars.thread_pool_size()]


@program(group="polars", env={"POLARS_MAX_THREADS": "1"})
def polars_threads_of_the_request():
    import polars

    return polars.thread_pool_size()


@program(group="polars", fresh=("sample",))
def polars_samples():
    import polars

    return {"sample": str(polars.Series(range(10**5)).sample(8).to_list())}


@program(group="polars")
def polars_variables():
    import os

    import polars

    return [polars.__name__, sorted(name for name in os.environ if "MALLOC" in name)]


@program(group="gevent")
def gevent_before_requests():
    import gevent.monkey

    gevent.monkey.patch_all()
    import socket

    import requests
    import urllib3.util.ssl_

    # Who took the name before the patch has the blocking one for good.
    context = urllib3.util.ssl_.SSLContext
    return [socket.socket.__module__, context.__module__, requests.__name__]


@program(group="gevent")
def gevent_not_imported():
    import socket
    import sys
    import threading

    return [
        socket.socket.__module__,
        threading.Lock().__class__.__module__,
        "gevent" in sys.modules,
    ]


@program(group="gevent")
def gevent_requests_without_it():
    import socket
    import ssl

    import requests

    return [socket.socket.__module__, ssl.SSLContext.__module__, requests.__name__]


@program(group="gevent")
def gevent_greenlets():
    import gevent

    def double(number):
        gevent.sleep(0.001)
        return number * 2

    jobs = [gevent.spawn(double, number) for number in range(4)]
    gevent.joinall(jobs, timeout=10)
    return [job.value for job in jobs]


@program(group="gevent")
def gevent_over_loopback():
    import gevent.monkey

    gevent.monkey.patch_all()
    import gevent.pywsgi
    import requests

    def answer(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["PATH_INFO"].encode()]

    server = gevent.pywsgi.WSGIServer(("127.0.0.1", 0), answer, log=None)
    server.start()
    with requests.Session() as session:
        session.trust_env = False
        text = session.get(f"http://127.0.0.1:{server.server_port}/x", timeout=10).text
    server.stop()
    return text


@program(group="jax")
def jax_gradient():
    import jax

    return float(jax.grad(lambda x: x**3)(2.0))


@program(group="jax")
def jax_with_a_key():
    import jax

    return jax.random.uniform(jax.random.key(1), (2,)).tolist()


@program(group="jax")
def jax_precision_by_variable():
    import os

    os.environ["JAX_ENABLE_X64"] = "1"
    import jax.numpy

    return str(jax.numpy.ones(1).dtype)


@program(group="jax")
def jax_precision_left_alone():
    import jax.numpy

    return str(jax.numpy.ones(1).dtype)


@program(group="jax")
def jax_after_a_seed_of_numpy():
    """It draws from numpy's global generator when it is imported."""
    import numpy

    numpy.random.seed(5)
    import jax

    return [float(numpy.random.rand()), jax.__name__]


@program(group="torch", fresh=(EVERYTHING,))
def torch_random():
    import torch

    return [torch.rand(1).item(), torch.randint(10**15, (1,)).item(), torch.initial_seed()]


@program(group="torch")
def torch_with_a_seed():
    import torch

    torch.manual_seed(1)
    layer = torch.nn.Linear(3, 2)
    return [torch.rand(2).tolist(), layer(torch.ones(3)).tolist()]


@program(group="torch")
def torch_gradient():
    import torch

    x = torch.tensor(2.0, requires_grad=True)
    (x**3).backward()
    return [x.grad.item(), torch.is_grad_enabled(), str(torch.get_default_dtype())]


@program(group="torch")
def torch_threads():
    import torch

    matrix = torch.arange(250000.0).reshape(500, 500) / 1e5
    return [torch.get_num_threads(), round((matrix @ matrix).sum().item() / 1e3)]


@program(group="torch")
def torch_loader_with_workers():
    import torch
    from torch.utils.data import DataLoader

    class Squares(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return index * index

    loader = DataLoader(Squares(), batch_size=3, num_workers=2, multiprocessing_context="fork")
    return [batch.tolist() for batch in loader]


@program(group="torch")
def torch_not_imported():
    import sys

    import numpy

    return ["torch" in sys.modules, numpy.__name__]
