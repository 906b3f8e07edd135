"""A generated data set: textured pictures of overlapping shapes, for three tasks, and rooms.

Nothing is downloaded. The outline of an object decides its class. Colour is a hint to the class,
and texture is random. The scenes hold objects of all three COCO sizes. Objects are turned, lie on
top of each other and are cut by the border. Masks cover the visible part of an object, which is
more than half of it. ``det`` and ``seg`` share the pictures. ``cls`` has pictures of its own, with
one whole object each::

    shapes/
      shapes.json                              arguments, classes, counts
      train/000001.jpg                val/     scenes
      annotations/instances_train.json  ..._val.json      COCO, for det
      annotations/train/000001.png    val/     label maps, for seg
      cls/train/<class>/000001.jpg    val/     class folders, for cls

Configs name the training data as follows. ``val`` takes the place of ``train`` for the other split.

mmdet (instances)::

    dict(
        type="CocoDataset",
        data_root="data/shapes",
        ann_file="annotations/instances_train.json",
        data_prefix=dict(img="train/"),
        metainfo=dict(classes=CLASSES, palette=PALETTE),
    )

mmseg. The background is a class of its own, so that mIoU counts background pixels that the model
takes for an object. ``num_classes`` is one more than the number of shapes::

    dict(
        type="BaseSegDataset",
        data_root="data/shapes",
        data_prefix=dict(img_path="train", seg_map_path="annotations/train"),
        metainfo=dict(classes=SEG_CLASSES, palette=SEG_PALETTE),
        reduce_zero_label=False,
    )

The same files follow the convention of ADE20K, where 0 means "not labelled". With
``reduce_zero_label=True``, ``CLASSES`` and ``PALETTE``, mmseg ignores the background.

mmpretrain. Class numbers are the indices into ``CLASSES``::

    dict(
        type="CustomDataset",
        data_root="data/shapes",
        data_prefix="cls/train",
        metainfo=dict(classes=CLASSES),
    )

or ``dict(type="ImageNet", data_root="data/shapes/cls", split="train",
metainfo=dict(classes=CLASSES))``.

A fourth task, ``multitask``, has rooms instead of shapes. :mod:`mmlocal.datasets.scenes` draws and
describes them. Only a call that names the task writes them, into ``NYUDv2`` or ``PASCALContext``::

    dict(
        type="mmlocal.NYUDv2",
        data_root="data/shapes/NYUDv2",
        tasks=("semseg", "depth", "normals", "edge", "human_parts", "sal"),
        metainfo=dict(classes=SCENE_CLASSES, palette=SCENE_PALETTE),
    )

The masks in the COCO files are run-length encoded (RLE), which mmdet reads with its default
``poly2mask=True``. The generator needs OpenCV and rich, which mmcv and MMEngine install.
"""

from mmlocal.datasets.shapes.export import (
    DEFAULT_TASKS,
    TASKS,
    VERSION,
    add_task,
    generate_shapes,
    read_manifest,
)
from mmlocal.datasets.shapes.render import CLASSES

#: RGB of each class in drawings of predictions and annotations.
PALETTE: tuple[tuple[int, int, int], ...] = (
    (255, 127, 14),
    (31, 119, 180),
    (227, 208, 40),
    (44, 160, 44),
    (214, 39, 40),
    (148, 103, 189),
    (23, 190, 207),
    (240, 110, 200),
    (140, 86, 75),
)
#: Classes of the label maps: ``CLASSES`` after the background.
SEG_CLASSES: tuple[str, ...] = ("background", *CLASSES)
#: RGB of each class of ``SEG_CLASSES``.
SEG_PALETTE: tuple[tuple[int, int, int], ...] = ((0, 0, 0), *PALETTE)

__all__ = [
    "CLASSES",
    "DEFAULT_TASKS",
    "PALETTE",
    "SEG_CLASSES",
    "SEG_PALETTE",
    "TASKS",
    "VERSION",
    "add_task",
    "generate_shapes",
    "read_manifest",
]
