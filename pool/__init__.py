"""The pool: supervisor, scheduler, zygotes, workers, GPUs, and `Pool` itself."""
