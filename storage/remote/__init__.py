"""Caches at any fsspec URL (`s3://`, `gs://`, `file://`, `memory://`): push, pull, and reading where they lie.

A remote root holds `<fingerprint>/` for each cache, with exactly the files of `cache/current`; manifest.json is written
last, and without it a cache is unfinished and refused.
"""

from __future__ import annotations

from storage.remote.folder import RemoteFolder
from storage.remote.pull import pull
from storage.remote.push import Transferred, push
from storage.remote.reader import RemoteReader, open_cache
from storage.remote.root import Identity, finished_caches, resolve

__all__ = [
    "Identity",
    "RemoteFolder",
    "RemoteReader",
    "Transferred",
    "finished_caches",
    "open_cache",
    "pull",
    "push",
    "resolve",
]
