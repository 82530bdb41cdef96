"""Where the cache is that the stages after cache-teacher read: in cache/current, or at a remote root."""

from __future__ import annotations

from collections.abc import Callable

from stages.config import Config, cache_spec
from stages.config.task_cache import task_spec
from stages.context import Artefacts, Context
from stages.errors import InputError
from storage import CacheDescription, CacheError, CacheReader, Split, differing_fields
from storage.manifest import RootManifest
from storage.remote import RemoteFolder, RemoteReader, Transferred, finished_caches, push
from storage.remote.local_shards import forget_other_caches
from storage.remote.push import AGAIN


def open_cache(config: Config, context: Context, *splits: Split) -> CacheReader:
    """The finished cache, open for reading: the one in `cache/current`, or, where a root is named, the one there.

    At the root it is the cache that cache/manifest.json says, bit for bit, else as `choose` finds it. At most
    `machine.local_shards_gb` of its shards lie in `.cache-work/shards`, together with those of other caches that are in use.

    Raises as `CacheReader` and `RemoteReader` do, `InputError` where it is not clear which cache is meant, and where it was
    pulled without some of `splits`.
    """
    artefacts = context.artefacts
    reader = CacheReader(artefacts.cache) if artefacts.root is None else _open_at_root(artefacts.root, config, context)
    of_task = (reader.description.task or {}).get("name")
    if of_task is not None and artefacts.task is None:
        raise InputError(
            f"{cache_name(artefacts)} is the cache of the task {of_task}, which `pipeline finetune --distil` reads; expected one of a "
            f"language model; run: {artefacts.cache_command}"
        )
    absent = [split for split in splits if split not in reader.description.splits]
    if absent:
        raise InputError(
            f"{cache_name(artefacts)} holds {', '.join(reader.description.splits)} and no {', '.join(absent)}; fetch the whole "
            f"(`pipeline cache pull URL`), or compute what is missing where the teacher is (`{artefacts.cache_command}`)"
        )
    return reader


def _open_at_root(url: str, config: Config, context: Context) -> RemoteReader:
    artefacts = context.artefacts
    root = RemoteFolder(url)
    expected = tracked(artefacts)
    fingerprint = choose(root, config, context) if expected is None else expected.fingerprint
    reader = RemoteReader(
        root.below(fingerprint).url,
        artefacts.local_shards,
        limit_bytes=int(config.machine.local_shards_gb * 2**30),
        root_digest=None if expected is None else expected.root_digest,
    )
    forget_other_caches(artefacts.local_shards, reader.root_digest)
    return reader


def cache_name(artefacts: Artefacts) -> str:
    """How a message calls the cache that `open_cache` opens."""
    here = artefacts.shown(artefacts.cache)
    if artefacts.root is None:
        return here
    of_further = "" if artefacts.further_teacher is None else f"of the teacher {artefacts.further_teacher} "
    of_further = of_further if artefacts.task is None else f"of the task {artefacts.task} "
    return f"the cache {of_further}at {RemoteFolder(artefacts.root).shown()}"


def tracked(artefacts: Artefacts) -> RootManifest | None:
    """What cache/manifest.json says, where DVC tracks that file instead of the cache; None where it is not there.

    Raises `InputError` where it is damaged.
    """
    file = artefacts.tracked_manifest
    try:
        return RootManifest.from_bytes(file.read_bytes())
    except FileNotFoundError:
        return None
    except (CacheError, OSError) as error:
        raise InputError(f"{file}: {error}; fetch it again (`dvc checkout`), or {_fetch_by_name(artefacts)}") from error


def choose(root: RemoteFolder, config: Config, context: Context) -> str:
    """The fingerprint of the one cache at the root that was made with these parameters, or of the only one there is.

    Digests of content need corpus and teacher, which may not be here, so several caches may fit: then the user chooses.
    Raises `InputError` that lists them.
    """
    found = finished_caches(root)
    task = context.artefacts.task
    found = {
        name: cache  # what cannot be read may be of any kind
        for name, cache in found.items()
        if not isinstance(cache, CacheDescription) or (cache.task or {}).get("name") == task
    }
    readable = {name: cache for name, cache in found.items() if isinstance(cache, CacheDescription)}
    spec = cache_spec(config) if task is None else task_spec(config, task)
    fitting = [name for name, cache in readable.items() if not differing_fields(spec, cache.spec)]
    if len(fitting) == 1:
        return fitting[0]
    if len(found) == 1 and readable:
        (name,) = readable
        differences = differing_fields(spec, readable[name].spec)
        context.progress.message(f"the only cache there was made with other parameters: {'; '.join(differences)}")
        return name
    if not found:
        which, option = ("", "") if task is None else (f" of the task {task}", f" --task {task}")
        raise InputError(
            f"{root.shown()} holds no finished cache{which}; put one there with `pipeline cache push`{option}"
        )
    which = "several were made with these parameters" if fitting else "none of them was made with these parameters"
    raise InputError(
        f"{root.shown()} holds {len(found)} caches, and {which}; {_fetch_by_name(context.artefacts)}; there are: "
        f"{', '.join(fitting or found)}"
    )


def _fetch_by_name(artefacts: Artefacts) -> str:
    """The advice where it is not clear which cache is meant."""
    advice = "fetch one by its name (`pipeline cache pull URL --fingerprint F`)"
    if artefacts.root is None:
        return advice
    return f"{advice} and run this without --root and TEACHER_CACHE_ROOT, so that it is read here"


def push_cache(context: Context, url: str, *, verify: bool = False) -> Transferred:
    """Copy cache/current to the root at `url`, reporting progress. Raises as `storage.remote.push`, `Interrupted` when asked."""
    artefacts = context.artefacts
    return push(
        artefacts.cache,
        RemoteFolder(url, again=AGAIN),
        artefacts.cache_work,
        verify=verify,
        begun=lambda task, size: context.progress.begin(task, size, "bytes"),
        advanced=counting(context, "what was copied is kept there"),
    )


def counting(context: Context, kept: str) -> Callable[[int], None]:
    """Counts bytes, and ends the transfer when a stop was asked for; `kept` says what is safe."""

    def advance(amount: int) -> None:
        context.progress.advance(amount)
        context.stop_if_asked(kept)

    return advance
