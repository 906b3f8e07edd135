"""Try an installed wheel: its kernels load, a backbone runs, and the configs are there."""

import torch

import mmlocal
from mmlocal.models.backbones import ELSASwin, QnAViT
from mmlocal.ops import OPS

reasons = {
    name: backend.unavailable_reason()
    for name, op in OPS.items()
    for backend in op.backends
    if backend.name == "cpp"
}
print(mmlocal.__version__, mmlocal.__file__, reasons)
assert reasons, "no op has a backend in C++"
assert not any(reasons.values()), reasons
assert "elsa_swin_t_maskrcnn_1x" in mmlocal.list_configs()
for backbone in (ELSASwin("tiny"), QnAViT("tiny")):
    backbone.init_weights()
    maps = backbone(torch.rand(1, 3, 96, 128))
    assert all(torch.isfinite(x).all() for x in maps)
