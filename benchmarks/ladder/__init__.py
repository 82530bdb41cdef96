"""Parts of `benchmarks/codec_ladder.py`."""
