"""Auto-encoders. They need MMEngine and no library of a task."""

from mmlocal.models.autoencoders.autoencoder import AutoEncoder

__all__ = ["AutoEncoder"]
