"""Child registries of MMEngine, scope ``mmlocal``: name a class as ``type='mmlocal.ELSASwin'``.

``locations`` are imported on first use, so this module imports nothing but MMEngine.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import Registry

MODELS = Registry("model", parent=MMENGINE_MODELS, scope="mmlocal", locations=["mmlocal.models"])
DATASETS = Registry(
    "dataset", parent=MMENGINE_DATASETS, scope="mmlocal", locations=["mmlocal.datasets"]
)
