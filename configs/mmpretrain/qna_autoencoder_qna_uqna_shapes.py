"""Narrow auto-encoder on 64x64 crops of the generated shapes: QnA and upsampling QnA.

The paper has no such model. It has three layers each way. So its smallest map has 8x8 tokens, as
the paper's model has with five layers at 256 pixels.
"""

_base_ = [
    "./_base_/models/autoencoder.py",
    "./_base_/datasets/shapes_images.py",
    "./_base_/schedules/adam_10e.py",
    "./_base_/default_runtime.py",
]

model = dict(encoder="qna", decoder="uqna", embed_dims=32, num_heads=4, num_layers=3)
auto_scale_lr = dict(base_batch_size=16)
randomness = dict(seed=0)
# With one, a run killed while it writes the next checkpoint would have none.
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(max_keep_ckpts=2))
