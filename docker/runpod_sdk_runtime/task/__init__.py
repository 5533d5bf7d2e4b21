"""``python -m runpod_sdk_runtime.task.runner``: the module that a pod of `@app.task` starts."""
