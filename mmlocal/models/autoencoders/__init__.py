"""Auto-encoders: need MMEngine and no task library. The metric is imported on first use."""

from mmlocal.models.autoencoders.autoencoder import AutoEncoder

__all__ = ["AutoEncoder"]
