"""A folder at an fsspec URL: whole files in and out, tried again while that can help.

Credentials, endpoints and the like are fsspec's own: the environment of the store's library, or `~/.config/fsspec`. The
libraries try again by themselves too, some of them often; the few attempts here are for what they let through.
"""

from __future__ import annotations

import errno
import hashlib
import random
import re
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from storage.errors import CorruptError, RemoteError
from storage.files import TEMPORARY
from storage.manifest import FileRecord

T = TypeVar("T")

ATTEMPTS = 4
FIRST_WAIT = 0.5
"""Seconds before the second attempt; each further wait is twice as long. Times a random factor, as many threads wait."""
DOWNLOADS = 2
"""A file that arrives damaged is fetched once more: it may have happened on the way."""

MEND = (
    "push it again from a whole copy (`pipeline cache push URL --verify`), or, where the teacher is, compute again what is "
    "damaged (`pipeline cache-teacher --root URL --verify`)"
)
"""What to do about a damaged file at a root."""

_BLOCK_BYTES = 1 << 23
_FINAL_ERRNOS = frozenset(
    {
        errno.EACCES, errno.EDQUOT, errno.EINVAL, errno.EISDIR, errno.EMSGSIZE, errno.ENAMETOOLONG, errno.ENOSPC,
        errno.ENOSYS, errno.ENOTDIR, errno.EPERM, errno.EROFS,
    }
)  # fmt: skip
_CLIENT_ERRORS_WORTH_ANOTHER_TRY = frozenset({408, 425, 429})
_DENIED = re.compile("Credential|Authenticat|Unauthori[sz]ed|Forbidden|AccessDenied")
_NO_BUCKET = re.compile("specified (bucket|container) does not exist")
"""What S3, Google Cloud Storage and Azure say; to fsspec it is a missing file like any other."""


class RemoteFolder:
    """The folder at `url`. Safe to share between threads.

    Every method raises `RemoteError`, naming the URL, what happened and `again`, where the store refuses or keeps
    failing. A missing file is never tried again, a lack of permission neither.
    """

    def __init__(
        self,
        url: str,
        *,
        again: str = "run the same command again",
        attempts: int = ATTEMPTS,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        self.url = url.rstrip("/")
        self.again, self._attempts, self._first_wait = again, attempts, first_wait
        self._fs, self._path = self._connect()

    def _connect(self) -> tuple[Any, str]:
        def connect() -> tuple[Any, str]:
            fs, path = url_to_fs(self.url)
            if isinstance(fs, LocalFileSystem):  # the only store that has folders and does not make them by itself
                fs = LocalFileSystem(auto_mkdir=True)
            return fs, str(path).rstrip("/")

        return self._call("opening it", "", connect)

    def below(self, name: str) -> RemoteFolder:
        """The folder `name` in this one."""
        return RemoteFolder(
            f"{self.url}/{name}", again=self.again, attempts=self._attempts, first_wait=self._first_wait
        )

    def shown(self, name: str = "") -> str:
        """URL of a file for a message, without the password that it may hold."""
        return without_password(f"{self.url}/{name}" if name else self.url)

    def folders(self) -> list[str]:
        """Names of the folders directly in this one; none where it does not exist."""

        def list_folders() -> list[str]:
            self._fs.invalidate_cache()
            entries = self._fs.ls(self._path, detail=True)
            return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory")

        try:
            return self._call("listing it", "", list_folders)
        except FileNotFoundError:
            return []

    def sizes(self, below: str = "") -> dict[str, int]:
        """The size of every file in this folder (or in its folder `below`), by path relative to this one: one listing."""

        def list_files() -> dict[str, int]:
            self._fs.invalidate_cache()
            found = self._fs.find(self._full(below) if below else self._path, detail=True)
            return {
                PurePosixPath(path).relative_to(self._path).as_posix(): int(info["size"])
                for path, info in found.items()
            }

        try:
            return self._call("listing it", below, list_files)
        except FileNotFoundError:
            return {}

    def read(self, name: str) -> bytes | None:
        """The bytes of a small file; None where it is missing."""
        try:
            return bytes(self._call("reading", name, lambda: self._fs.cat_file(self._full(name))))
        except FileNotFoundError:
            return None

    def record(self, name: str) -> FileRecord | None:
        """Size and SHA-256 of a file, by reading all of it; None where it is missing."""

        def digest() -> FileRecord:
            size, sha256 = 0, hashlib.sha256()
            with self._fs.open(self._full(name), "rb") as file:
                while block := file.read(_BLOCK_BYTES):
                    size += len(block)
                    sha256.update(block)
            return FileRecord(size, sha256.hexdigest())

        try:
            return self._call("reading", name, digest)
        except FileNotFoundError:
            return None

    def upload(self, source: Path, name: str) -> None:
        """Copy a local file whole: no reader ever sees half of it under its name."""

        def put() -> None:
            target = self._full(name)
            if isinstance(
                self._fs, LocalFileSystem
            ):  # an object store shows an object when it is whole, a disk at once
                temporary = str(PurePosixPath(target).with_name(f"{TEMPORARY}{PurePosixPath(target).name}"))
                self._fs.put_file(str(source), temporary)
                self._fs.mv(temporary, target)
            else:
                self._fs.put_file(str(source), target)

        try:
            self._call("writing", name, put)
        except FileNotFoundError as error:  # no such bucket, in words that are not known here
            raise RemoteError(f"{self.shown(name)}: writing failed: {_reason(error)}; check the URL") from error

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        try:
            self._call("removing", name, lambda: self._fs.rm_file(self._full(name)))
        except FileNotFoundError:
            return

    def download(self, name: str, record: FileRecord, target: Path) -> None:
        """Fetch a file to `target`: it gets this name once size and SHA-256 are right. Not durable yet.

        Raises `CorruptError`, naming the URL, for a file that is missing or not as recorded.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f"{TEMPORARY}{target.name}")
        damage: str | None = None
        for _ in range(DOWNLOADS):
            try:
                self._call("reading", name, lambda: self._fs.get_file(self._full(name), str(temporary)))
            except FileNotFoundError:
                damage = f"is missing; expected {record.size} bytes"
                break
            damage = record.damage(temporary, digest=True)
            if damage is None:
                temporary.replace(target)
                return
        temporary.unlink(missing_ok=True)
        raise CorruptError(f"{self.shown(name)} {damage}; {MEND}")

    def _full(self, name: str) -> str:
        return f"{self._path}/{name}"

    def _call(self, what: str, name: str, operation: Callable[[], T]) -> T:
        """The operation's result, tried again after transient errors. `FileNotFoundError` of a file is the caller's to judge."""
        for attempt in range(1, self._attempts + 1):
            try:
                return operation()
            except FileNotFoundError as error:
                if _NO_BUCKET.search(str(error)):
                    raise RemoteError(
                        f"{self.shown(name)}: {what} failed: {_reason(error)}; check the URL and the store's endpoint, then {self.again}"
                    ) from error
                raise
            except Exception as error:  # each store's library has errors of its own
                if _is_a_bug(error):
                    raise
                if _is_denied(error):
                    raise RemoteError(
                        f"{self.shown(name)}: {what} was refused ({_reason(error)}); check the URL and the credentials, "
                        f"which are those of fsspec and the store's library; then {self.again}"
                    ) from error
                if _is_final(error):
                    raise RemoteError(
                        f"{self.shown(name)}: {what} failed: {_reason(error)}; see to that, then {self.again}"
                    ) from error
                if attempt == self._attempts:
                    raise RemoteError(
                        f"{self.shown(name)}: {what} failed {attempt} times, at last with: {_reason(error)}; {self.again}"
                    ) from error
            # Many threads fail together when a store is busy; they should not come back together.
            time.sleep(self._first_wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))  # noqa: S311  no secret
        raise AssertionError("unreachable: the last attempt returns or raises")


def without_password(url: str) -> str:
    """The URL without user and password: messages end up in logs."""
    return re.sub(r"//[^/@]+@", "//...@", url)


def _is_a_bug(error: Exception) -> bool:
    """Whether it is an error of Python itself, such as a TypeError, that says nothing about the store."""
    return type(error).__module__ == "builtins" and not isinstance(error, OSError | EOFError | ImportError | ValueError)


def _status(error: Exception) -> int | None:
    """The HTTP status that an error of a store's library carries, under the names that are in use."""
    for name in ("status", "status_code", "code"):
        value = getattr(error, name, None)
        if isinstance(value, int):
            return value
    return None


def _is_denied(error: Exception) -> bool:
    """Whether permission or credentials are missing. The libraries share no class for it, but they share the words."""
    return (
        isinstance(error, PermissionError)
        or _status(error) in {401, 403}
        or any(_DENIED.search(kind.__name__) for kind in type(error).__mro__)
    )


def _is_final(error: Exception) -> bool:
    """Whether the same request will fail again."""
    if isinstance(error, ImportError | ValueError):  # the store's library is not installed; an unknown protocol
        return True
    if isinstance(error, OSError) and error.errno in _FINAL_ERRNOS:
        return True
    status = _status(error)
    return status is not None and 400 <= status < 500 and status not in _CLIENT_ERRORS_WORTH_ANOTHER_TRY


def _reason(error: Exception) -> str:
    return without_password(" ".join(str(error).split())) or type(error).__name__
