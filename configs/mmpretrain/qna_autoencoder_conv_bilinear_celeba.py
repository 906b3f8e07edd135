"""Auto-encoder on CelebA at 256 pixels: max-pooling and bilinear upsampling.

The model is from Learned Queries for Efficient Local Attention, Arar et al. 2022, appendix G, which
shows curves. The layers, the L1 loss, Adam, 10 epochs and the crop at the centre are from the
paper. 64 channels, the batch size and the learning rate are our choice. (The paper takes the rate
with the best test loss.) Not reproduced here.
"""

_base_ = [
    "./_base_/models/autoencoder.py",
    "./_base_/datasets/celeba_256.py",
    "./_base_/schedules/adam_10e.py",
    "./_base_/default_runtime.py",
]

model = dict(encoder="conv_max", decoder="bilinear_conv")
