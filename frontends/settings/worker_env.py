"""Selects the server's environment variables that calls may see.

A worker runs code of clients, so it gets only a list of allowed names (which programs need to find
libraries, caches, devices and certificates) and what ``FLASHPOOL_PASS_ENV`` adds. The server's own
secrets match no pattern, not even ``*``: a secret is passed on only if it is named exactly.

On a RunPod pod the default adds everything: the variables there are what the user declared for the
endpoint, and the client puts its API key among them, for functions that call other endpoints.
Variables of the worker itself (its token, the addresses and the key with which it takes jobs) are
still removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

#: Variables that no pattern matches.
SECRETS: Final = (
    *("RUNPOD_API_KEY", "RUNPOD_AI_API_KEY", "RUNPOD_WEBHOOK_*"),
    *("FLASHPOOL_TOKEN", "FLASHPOOL_ADMIN_TOKEN", "FLASHPOOL_VOLUME_KEY"),
    # The URLs may contain passwords.
    *("FLASHPOOL_INDEX_URL", "FLASHPOOL_EXTRA_INDEX_URLS"),
    # With these headers, a call could send traces to the operator's account.
    *("OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_*_HEADERS"),
)
#: The default of `FLASHPOOL_PASS_ENV` on a pod.
ON_A_POD: Final = "*,RUNPOD_API_KEY"

#: Variables of the server that every call may see.
ALLOWED: Final = (
    # The account and its directories
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "TERM", "HOSTNAME"),
    *("TMPDIR", "TEMP", "TMP", "XDG_*"),
    # Language and time
    *("LANG", "LANGUAGE", "LC_*", "TZ", "TZDIR"),
    # Libraries, compilers, processors
    *("LD_LIBRARY_PATH", "LIBRARY_PATH", "CPATH", "CC", "CXX", "CFLAGS", "LDFLAGS"),
    *(
        "OMP_*",
        "MKL_*",
        "OPENBLAS_*",
        "BLIS_*",
        "NUMEXPR_*",
        "VECLIB_*",
        "KMP_*",
        "GOMP_*",
        "MALLOC_*",
        "JE_ARROW_*",
        "_RJEM_*",
    ),
    # Devices
    *("CUDA_*", "CUDNN_*", "NVIDIA_*", "NCCL_*", "NV_*", "NVTE_*", "TRITON_*"),
    # Models and their caches
    *("HF_*", "HUGGINGFACE_*", "TRANSFORMERS_*", "DIFFUSERS_*", "TORCH*", "PYTORCH_*"),
    *("XLA_*", "JAX_*", "TF_*", "VLLM_*", "TOKENIZERS_PARALLELISM", "MPLBACKEND"),
    # Certificates and proxies
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy"),
    *("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "ALL_PROXY", "NO_PROXY"),
)
#: Set if the endpoint belongs to a dev session of SDK 2.0.
_DEV_SESSION: Final = "RUNPOD_DEV_APP"
#: Variables that the SDK reads in such a call: where it runs, its resource, its volumes.
OF_SDK: Final = (
    *("RUNPOD_ENDPOINT_ID", "RUNPOD_POD_ID", "RUNPOD_DEV_*", "RUNPOD_MOUNTS"),
    "RUNPOD_MAX_CONCURRENCY",
)


def worker_env(environ: Mapping[str, str], pass_env: Iterable[str]) -> dict[str, str]:
    """Return the complete environment of workers; nothing is added later."""
    patterns = (*ALLOWED, *pass_env)
    if environ.get(_DEV_SESSION):
        patterns += OF_SDK
    return {name: value for name, value in environ.items() if _may_pass(name, patterns)}


def _may_pass(name: str, patterns: tuple[str, ...]) -> bool:
    if any(fnmatchcase(name, secret) for secret in SECRETS):
        return name in patterns
    return any(fnmatchcase(name, pattern) for pattern in patterns)
