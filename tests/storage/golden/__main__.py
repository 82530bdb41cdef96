"""Write the golden caches that are not there yet."""

import json
import shutil
import tempfile
from pathlib import Path

from storage import CacheReader
from tests.storage.build import LAYOUTS, build_cache, make_description
from tests.storage.golden import decoded

HERE = Path(__file__).parent

for name in ("balanced", "threshold", "tail", "attention", "classes", "answers"):
    if (HERE / name).exists():
        continue
    with tempfile.TemporaryDirectory() as folder:
        description = make_description(LAYOUTS[name], shards=2, sequences_per_shard=4)
        shutil.copytree(build_cache(Path(folder), description), HERE / name)
    reader = CacheReader(HERE / name)
    expected = {
        "fingerprint": reader.description.fingerprint,
        "root_digest": reader.root_digest,
        "counts": reader.counts,
        "sums": {str(shard): decoded(reader, shard) for shard in reader.description.shard_ids()},
    }
    (HERE / f"{name}.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n", encoding="utf-8")
