"""Train the backbone of the package ``boxes`` with the library of this package."""

default_scope = "boxes"
custom_imports = dict(imports=["boxes"])
model = dict(type="Classifier", backbone=dict(type="mmlocal.BoxNet"))
train_dataloader = dict(
    batch_size=2,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(type="Colours", pipeline=[dict(type="Pack")]),
)
test_dataloader = train_dataloader
test_cfg = dict()
test_evaluator = dict(type="DumpResults", out_file_path="out.pkl")
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type="SGD", lr=0.1))
