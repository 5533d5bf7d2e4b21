"""The load-balanced images' application: ``uvicorn lb_handler:app --port 80``.

The mode is read from the environment. `flashpool serve lb` serves the same, with deadlines for
clients.
"""

from flashpool.frontends.lb.hosted import create_hosted_app

app = create_hosted_app()
