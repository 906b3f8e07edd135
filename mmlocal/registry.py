"""Child registries of MMEngine with the scope ``mmlocal``.

A config names a class as ``type='mmlocal.ELSASwin'``. MMEngine imports ``locations`` on first use,
so this module imports only MMEngine.
"""

from mmengine.registry import DATASETS as MMENGINE_DATASETS
from mmengine.registry import HOOKS as MMENGINE_HOOKS
from mmengine.registry import METRICS as MMENGINE_METRICS
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS as MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.registry import OPTIM_WRAPPERS as MMENGINE_OPTIM_WRAPPERS
from mmengine.registry import TRANSFORMS as MMENGINE_TRANSFORMS
from mmengine.registry import VISUALIZERS as MMENGINE_VISUALIZERS
from mmengine.registry import Registry

#: Backbones, necks, heads and whole models.
MODELS = Registry("model", parent=MMENGINE_MODELS, scope="mmlocal", locations=["mmlocal.models"])
#: Data sets.
DATASETS = Registry(
    "dataset", parent=MMENGINE_DATASETS, scope="mmlocal", locations=["mmlocal.datasets"]
)
#: Hooks of MMEngine's runner.
HOOKS = Registry("hook", parent=MMENGINE_HOOKS, scope="mmlocal", locations=["mmlocal.engine"])
#: Metrics.
METRICS = Registry(
    "metric",
    parent=MMENGINE_METRICS,
    scope="mmlocal",
    locations=["mmlocal.evaluation"],
)
#: Steps of data pipelines.
TRANSFORMS = Registry(
    "transform",
    parent=MMENGINE_TRANSFORMS,
    scope="mmlocal",
    locations=["mmlocal.datasets.transforms"],
)
#: Visualizers, which draw predictions and labels.
VISUALIZERS = Registry(
    "visualizer",
    parent=MMENGINE_VISUALIZERS,
    scope="mmlocal",
    locations=["mmlocal.visualization"],
)
#: Optimizer wrappers.
OPTIM_WRAPPERS = Registry(
    "optim_wrapper",
    parent=MMENGINE_OPTIM_WRAPPERS,
    scope="mmlocal",
    locations=["mmlocal.engine"],
)
#: Constructors of optimizer wrappers, which group the parameters.
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    "optim_wrapper_constructor",
    parent=MMENGINE_OPTIM_WRAPPER_CONSTRUCTORS,
    scope="mmlocal",
    locations=["mmlocal.engine"],
)
