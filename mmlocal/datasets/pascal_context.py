"""PASCAL-Context with labels for five tasks."""

from __future__ import annotations

from typing import ClassVar

from mmlocal.datasets.multitask import MultiTaskDataset, Source, voc_palette
from mmlocal.registry import DATASETS

_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair"),
    *("cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_LABEL_MAP = Source("pascal-context/trainval", ".mat")


@DATASETS.register_module()
class PASCALContext(MultiTaskDataset):
    """PASCAL-Context: 4,998 images for training and 5,105 for validation, up to 500x500 pixels.

    The label maps are of 21 classes, of six human parts, of saliency, of surface normals and of
    boundaries. Networks made the labels of saliency and of normals. The data set reads the archive
    of DeMT (``PASCALContext.tar.gz``) and the archive of ATRC, ASTMT and MTI-Net
    (``PASCAL_MT.tgz``), which have the same tree.

    Note:
        Boundaries are the borders in the label map of 459 classes. They are computed as the map is
        loaded. Normals are kept only where this map has a class that occurs in rooms too.

    Source:
        The Role of Context for Object Detection and Semantic Segmentation in the Wild, Mottaghi et
        al. 2014; Attentive Single-Tasking of Multiple Tasks, Maninis et al. 2019. Layout: the code
        of DeMT, https://github.com/yangyangxu0/DeMT.
    """

    METAINFO: ClassVar[dict] = {"classes": _CLASSES, "palette": voc_palette(21)}
    TREE = """
    {root}
    ├── JPEGImages/*.jpg
    ├── semseg/VOC12/*.png      or, image by image, semseg/pascal-context/*.png
    ├── human_parts/*.mat
    ├── sal_distill/*.png
    ├── normals_distill/*.png   needs pascal-context too
    ├── pascal-context/trainval/*.mat
    └── ImageSets/Context/{{train,val}}.txt"""
    SPLITS = "ImageSets/Context"
    IMAGES = (Source("JPEGImages", ".jpg"),)
    LABELS: ClassVar = {
        "semseg": (Source("semseg/VOC12", ".png", "classes", or_else="semseg/pascal-context"),),
        "human_parts": (Source("human_parts", ".mat", "parts_mat"),),
        "sal": (Source("sal_distill", ".png", "binary_png"),),
        "normals": (Source("normals_distill", ".png", "normals_of_rooms", label_map=_LABEL_MAP),),
        "edge": (Source(_LABEL_MAP.folder, _LABEL_MAP.suffix, "edge_mat"),),
    }
