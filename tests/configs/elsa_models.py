"""The configs of ELSA-Swin, and how to make them small enough to run."""

from mmengine import Config

import mmlocal

PUBLISHED = [
    name for name in mmlocal.list_configs() if name.startswith("elsa_swin") and "shapes" not in name
]


def narrow(cfg: Config) -> Config:
    """The same config, its backbone with few channels and blocks, to run on a CPU."""
    channels = [8, 16, 32, 64]
    cfg.model.backbone.arch = dict(
        embed_dims=8, depths=[1, 1, 1, 2], num_heads=[1, 2, 4, 8], group_width=4
    )
    if cfg.default_scope == "mmdet":
        cfg.model.neck.in_channels = channels
    elif cfg.default_scope == "mmseg":
        cfg.model.decode_head.update(in_channels=channels, channels=8, num_classes=3)
        cfg.model.auxiliary_head.update(in_channels=32, channels=8, num_classes=3)
    else:
        cfg.model.head.in_channels = 64
    return cfg


# config: (drop path rate, epochs, drops), from the official config files
