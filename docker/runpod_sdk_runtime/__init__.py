"""The name that clients of SDK 2.0 start in an image: here it starts flashpool.

In a custom image, the client runs ``python -m runpod_sdk_runtime.bootstrap`` if that can be imported,
and else installs RunPod's own worker over whatever is there. The standard library is all that this
needs: the image's Python is not the one that flashpool is installed for.
"""
