"""Caches at any fsspec URL (`s3://`, `gs://`, `file://`, `memory://`): push, pull, reading and writing where they lie.

A remote root holds `<fingerprint>/` for each cache, with exactly the files of `cache/current`; manifest.json is written
last, and without it a cache is unfinished and refused.
"""

from __future__ import annotations

from storage.remote.folder import RemoteFolder
from storage.remote.pull import pull
from storage.remote.push import Transferred, push
from storage.remote.reader import RemoteReader, open_cache
from storage.remote.root import Identity, finished_caches, resolve
from storage.remote.work import RemoteWork, finished_at, keep_manifest

__all__ = [
    "Identity",
    "RemoteFolder",
    "RemoteReader",
    "RemoteWork",
    "Transferred",
    "finished_at",
    "finished_caches",
    "keep_manifest",
    "open_cache",
    "pull",
    "push",
    "resolve",
]
