# CelebA, aligned and cropped: data/celeba/img_align_celeba/000001.jpg ... 202599.jpg, all of them.
# The official parts are ranges of the file names (list_eval_partition.txt): 162,770 to train on,
# 19,867 to validate, 19,962 to test. A positive number takes the first files, a negative number the
# last ones.
data_root = "data/celeba"
pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="CenterCrop", crop_size=178),  # the pictures have 178x218
    dict(type="Resize", scale=(256, 256), interpolation="bilinear"),
    dict(type="PackInputs"),
]

train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="CustomDataset",
        data_root=data_root,
        data_prefix="img_align_celeba",
        with_label=False,
        indices=162770,
        pipeline=pipeline,
    ),
)
# The paper reports the loss on the test images, and chooses the learning rate by it.
val_dataloader = dict(
    batch_size=32,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type="CustomDataset",
        data_root=data_root,
        data_prefix="img_align_celeba",
        with_label=False,
        indices=-19962,
        pipeline=pipeline,
    ),
)
test_dataloader = val_dataloader
