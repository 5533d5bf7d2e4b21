"""Modules whose packages have another name in the index: a table of facts.

Used for advice only. flashpool never replaces a requirement: under many of these names the index
has another package, which may be the intended one.
"""

from __future__ import annotations

import re
from typing import Final

__all__ = ["is_another_package", "module_named", "providers_of"]

_TABLE: Final = """
apiclient: google-api-python-client | attr: attrs | Bio: biopython | bs4: beautifulsoup4
bson: pymongo | cairo: pycairo | cassandra: cassandra-driver | cv2: opencv-python-headless opencv-python
Crypto: pycryptodome | Cryptodome: pycryptodomex | cpuinfo: py-cpuinfo | dateutil: python-dateutil
decouple: python-decouple | discord: discord.py | dns: dnspython | docx: python-docx | dotenv: python-dotenv
exifread: ExifRead | faiss: faiss-cpu | ffmpeg: ffmpeg-python | fitz: pymupdf | git: GitPython
github: PyGithub | gi: PyGObject | googleapiclient: google-api-python-client
google.protobuf: protobuf | google.auth: google-auth | google.oauth2: google-auth
google.genai: google-genai | google.generativeai: google-generativeai
google.cloud.storage: google-cloud-storage | google.cloud.bigquery: google-cloud-bigquery
google.cloud.pubsub: google-cloud-pubsub | google.cloud.firestore: google-cloud-firestore
google.cloud.vision: google-cloud-vision | google.cloud.speech: google-cloud-speech
google.cloud.aiplatform: google-cloud-aiplatform | google.cloud.translate: google-cloud-translate
google: protobuf google-auth google-genai google-cloud-storage | hydra: hydra-core
jose: python-jose | jwt: PyJWT | kafka: kafka-python | ldap: python-ldap
llama_cpp: llama-cpp-python | magic: python-magic | memcache: python-memcached | mpl_toolkits: matplotlib
MySQLdb: mysqlclient | nacl: PyNaCl | OpenGL: PyOpenGL | OpenSSL: pyOpenSSL | osgeo: gdal
paho: paho-mqtt | PIL: pillow | pkg_resources: setuptools<82
pptx: python-pptx | psycopg2: psycopg2-binary psycopg2
pylab: matplotlib | pywintypes: pywin32 | rest_framework: djangorestframework
ruamel: ruamel.yaml | serial: pyserial | skimage: scikit-image
sklearn: scikit-learn | skopt: scikit-optimize | slugify: python-slugify | snappy: python-snappy
socketio: python-socketio | socks: PySocks | speech_recognition: SpeechRecognition
telegram: python-telegram-bot | telebot: pyTelegramBotAPI | umap: umap-learn | usb: pyusb
websocket: websocket-client | whisper: openai-whisper | win32api: pywin32 | wx: wxPython
Xlib: python-xlib | yaml: PyYAML | zmq: pyzmq | zstd: zstandard | community: python-louvain
distutils: setuptools | imp: zombie-imp | asyncore: pyasyncore | asynchat: pyasynchat
cgi: legacy-cgi | cgitb: legacy-cgi | audioop: audioop-lts | crypt: legacycrypt
telnetlib: standard-telnetlib | imghdr: standard-imghdr | sndhdr: standard-sndhdr
pipes: standard-pipes | uu: standard-uu | xdrlib: standard-xdrlib | chunk: standard-chunk
aifc: standard-aifc | sunau: standard-sunau | nntplib: standard-nntplib | mailcap: standard-mailcap
"""
#: Modules for which the package of the same name in the index installs the same package.
_SAME: Final = frozenset({"bs4", "discord", "google", "psycopg2"})


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _read(table: str) -> dict[str, tuple[str, ...]]:
    entries = (entry.partition(":") for line in table.splitlines() for entry in line.split("|"))
    return {name.strip(): tuple(made.split()) for name, _, made in entries if made}


_MODULES: Final = _read(_TABLE)
_SPELLINGS: Final = {_plain(module): module for module in _MODULES}


def providers_of(module: str) -> tuple[str, ...]:
    """Return the packages that provide a module, the usual one first; empty if unknown.

    A submodule is looked up under its own name and then under its parents' names: if
    `google.cloud.storage.blob` is missing, the package is `google-cloud-storage`.
    """
    parts = module.split(".")
    names = (module_named(".".join(parts[:count])) for count in range(len(parts), 0, -1))
    return next((_MODULES[name] for name in names if name in _MODULES), ())


def module_named(name: str) -> str:
    """Return a module as `import` spells it, for a requirement's name: `PIL` for `pil`."""
    return _SPELLINGS.get(_plain(name), name)


def is_another_package(name: str) -> bool:
    """Return whether the package of that name is another one than the module's."""
    plain = _plain(name)
    if plain not in _SPELLINGS or plain in _SAME:
        return False
    return plain not in map(_plain, providers_of(name))
