# Adam for 10 epochs. The constant learning rate and 32 images per step are our choice.
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="Adam", lr=0.001))
auto_scale_lr = dict(enable=False, base_batch_size=32)
