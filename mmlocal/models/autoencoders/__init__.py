"""Auto-encoders. They need MMEngine and no other OpenMMLab library."""

from mmlocal.models.autoencoders.autoencoder import AutoEncoder

__all__ = ["AutoEncoder"]
