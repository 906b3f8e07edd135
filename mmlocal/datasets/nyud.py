"""NYUD-v2 with labels for semantic segmentation, depth, normals and boundaries."""

from __future__ import annotations

from typing import ClassVar

from mmlocal.datasets.multitask import MultiTaskDataset, Source, voc_palette
from mmlocal.registry import DATASETS

_CLASSES = (
    *("wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf"),
    *("picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror"),
    *("floor mat", "clothes", "ceiling", "books", "refridgerator", "television", "paper", "towel"),
    *("shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp"),
    *("bathtub", "bag", "otherstructure", "otherfurniture", "otherprop"),
)


@DATASETS.register_module()
class NYUDv2(MultiTaskDataset):
    """NYUD-v2: 795 images of rooms for training and 654 for validation, 425x560 pixels.

    The label maps are of 40 classes, of depth in metres, of surface normals and of boundaries. The
    data set reads the layout of DeMT (``NYUDv2.tar.gz``) and the layout of ATRC, ASTMT and MTI-Net
    (``NYUD_MT.tgz``). It also reads human parts and saliency, which NYUD-v2 does not have, but the
    generated scenes have.

    Note:
        In a file, label 0 stands for no class. A loaded label map has the classes from 0, and 255
        for no class.

    Source:
        Indoor Segmentation and Support Inference from RGBD Images, Silberman et al. 2012. Layouts:
        the code of DeMT, https://github.com/yangyangxu0/DeMT, and of MTI-Net.
    """

    METAINFO: ClassVar[dict] = {"classes": _CLASSES, "palette": voc_palette(41)[1:]}
    FIRST_COLOUR = 1
    TREE = """
    {root}
    ├── images/*.png            or *.jpg
    ├── segmentation/*.png      0 = no class, then the classes from 1
    ├── depth/*.npy             metres
    ├── normals/*.png           or *.npy
    ├── edge/*.png              or *.npy
    ├── human_parts/*.png       only the generated scenes have them
    ├── sal/*.png               only the generated scenes have them
    └── gt_sets/{{train,val}}.txt"""
    SPLITS = "gt_sets"
    IMAGES = (Source("images", ".png"), Source("images", ".jpg"))
    LABELS: ClassVar = {
        "semseg": (Source("segmentation", ".png", "classes_from_1"),),
        "human_parts": (Source("human_parts", ".png", "classes"),),
        "sal": (Source("sal", ".png", "binary_png"),),
        "depth": (Source("depth", ".npy", "depth_npy"),),
        "normals": (
            Source("normals", ".png", "normals_png"),
            Source("normals", ".npy", "normals_npy"),
        ),
        "edge": (Source("edge", ".png", "binary_png"), Source("edge", ".npy", "binary_npy")),
    }
