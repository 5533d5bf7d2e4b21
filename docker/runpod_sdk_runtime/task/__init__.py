"""``python -m runpod_sdk_runtime.task.runner``: what a pod of `@app.task` starts."""
