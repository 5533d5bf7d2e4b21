"""The package that clients of SDK 2.0 start in an image: this one starts flashpool.

In a custom image, the client runs ``python -m runpod_sdk_runtime.bootstrap`` if that can be
imported; otherwise the client installs RunPod's own worker. This package needs only the standard
library, because the image's Python may not be the one that flashpool is installed for.
"""
