"""Models by task. Importing this package registers every model whose library is installed."""

from mmlocal.models import backbones, necks

__all__ = ["backbones", "necks"]
