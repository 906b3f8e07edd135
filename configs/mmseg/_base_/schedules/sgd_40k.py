# DeMT's schedule: 40k iterations of 8 images, a rate that falls to 0 from the first iteration on,
# and no warm-up. The official validation takes place every 10 epochs of NYUD-v2 and every 3 epochs
# of PASCAL-Context. It does not choose the checkpoint, so it is rarer here.
max_iters = 40000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=8000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")

param_scheduler = dict(
    type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=max_iters
)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.001, momentum=0.9, weight_decay=0.0005),
)

randomness = dict(seed=0)

# 8 images in all, on however many GPUs
auto_scale_lr = dict(enable=False, base_batch_size=8)
