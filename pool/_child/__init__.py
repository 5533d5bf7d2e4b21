"""All code that runs inside zygotes and workers: standard library, cloudpickle and tblib only.

In a worker's interpreter, of any Python version, this folder is the package ``_flashpool`` (see
`boot`); in the server it is ``flashpool.pool._child``. No object of these modules is pickled.
"""
