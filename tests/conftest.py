"""For all tests: no network, one thread. Set before torch and the Hugging Face libraries are imported."""

from __future__ import annotations

import os

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the models here are too small for more
if not os.path.exists("/dev/nvidiactl"):  # noqa: PTH110  nothing else is imported yet
    # Kernels for a GPU are run by Triton's interpreter then, where Triton is installed.
    os.environ["TRITON_INTERPRET"] = "1"
