"""Auto-encoder on CelebA at 256 pixels: max-pooling and bilinear upsampling.

Learned Queries for Efficient Local Attention, appendix G, whose figures were not at hand. From the
paper: the layers, the L1 loss, Adam, 10 epochs, images cropped at the centre. Ours, as it does not
say: 64 channels, batch and learning rate (the paper takes the rate with the best test loss). Not
reproduced here.
"""

_base_ = [
    "./_base_/models/autoencoder.py",
    "./_base_/datasets/celeba_256.py",
    "./_base_/schedules/adam_10e.py",
    "./_base_/default_runtime.py",
]

model = dict(encoder="conv_max", decoder="bilinear_conv")
