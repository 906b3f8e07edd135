"""ELSA-VOLO-D1 on ImageNet-1k, fine-tuned at 384 pixels, 30 epochs and 10 of cool-down.

Our extension: no figure that we could check is published for this model.

The recipe and its differences are as in volo_d1_in1k_30e_384.py. That the recipe is VOLO's is our
assumption. Our choices in the model are listed in ``mmlocal.ELSAVOLO``.

The run starts from a checkpoint of elsa_volo_d1_in1k_300e.py, and stops with an error if there is
none. The position embedding is resized. To name another file, such as a converted official
checkpoint::

    --cfg-options model.backbone.init_cfg.checkpoint=FILE model.head.init_cfg.checkpoint=FILE
"""

_base_ = "./volo_d1_in1k_30e_384.py"

checkpoint = "work_dirs/elsa_volo_d1_in1k_300e/epoch_310.pth"
model = dict(
    backbone=dict(type="mmlocal.ELSAVOLO", init_cfg=dict(checkpoint=checkpoint)),
    head=dict(init_cfg=dict(checkpoint=checkpoint)),
)
