"""All code that runs inside zygotes and workers: standard library, cloudpickle and tblib only.

In a worker's interpreter this folder is the package ``_flashpool`` (see `boot`), whatever
Python that is; in the server it is ``flashpool.pool._child``. Nothing here is pickled.
"""
