"""How large and how fast a student is beside its teacher.

`shapes` needs no weights and takes seconds: random ids of one length, by `init-student`. `on_text` is for trained models and takes
minutes: a pass over real sentences, in PyTorch and, exported by `onnx_files`, in ONNX Runtime, float32 and int8.
"""
