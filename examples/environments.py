"""Run two versions of one package side by side, each in an environment of its own.

    .venv/bin/python examples/environments.py

The first run builds both environments, and says so; later runs find them in ~/.cache/flashpool.
"""

from flashpool.pool import EnvironmentError, Pool


def version() -> str:
    """Return the version of humanize that this call imports."""
    from importlib.metadata import version

    import humanize  # noqa: F401 - it is there

    return version("humanize")


with Pool() as pool:
    old = pool.options(dependencies=["humanize==4.9.0"])
    new = pool.options(dependencies=["humanize==4.11.0"])
    futures = [old.submit(version), new.submit(version)]
    print("versions:", [future.result() for future in futures])
    receipt = futures[0].receipt
    assert receipt is not None  # the call has ended
    print("environment:", receipt.environment)

    # What cannot be resolved fails the calls that ask for it, with the words of uv.
    broken = pool.options(dependencies=["humanize==0.0.0.1"])
    try:
        broken.submit(version).result()
    except EnvironmentError as error:
        print("failed in phase", error.details["phase"])
