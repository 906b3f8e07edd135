"""Generated scenes in depth, with exact labels for every task of multi-task dense prediction.

A ray caster draws rooms with a rug, a picture, and two to six solids, of which some are people. The
same rays give the picture and all labels, so the labels are exact:

- semantic labels of ``SCENE_CLASSES``;
- depth in metres along the camera's axis, without holes;
- surface normals in the camera's axes: x to the right, y up, z towards the camera. So a mirrored
  picture has normals with the opposite x;
- parts of people, ``PART_NAMES``: boundaries between parts are no boundaries of the task ``edge``;
- saliency: solids of a vivid colour are salient, dull ones are not. A person counts by the shirt.
  The room, the rug and the picture are never salient. The first solid of a scene is vivid, half of
  the others are;
- boundaries: pixels whose right or lower neighbour belongs to another surface or object. A corner
  between two walls is a boundary, an edge of one box between its faces is not;
- bounding boxes of the visible parts of the solids.

The scenes are easy enough for a narrow network that trains on a CPU in minutes, on purpose. A lamp
always stands to the upper left of the camera and its light falls off, so that shading tells the
normal and, roughly, the distance. The camera has one focal length, and its height and pitch vary
little, so that the place on the floor tells the distance, and so do the tiles, which always have
sides of half a metre. Floors, walls and ceilings have colours of their own. People wear a shirt and
shorts, so that skin tells arms and legs from the rest. The hue is a hint to the class of a solid:
the nearest hue is right for six of seven solids, but it is faint in all solids that are not
salient. The pattern tells nothing.

No label is painted into the picture, however. Paint changes brightness as shading does, tiles and
shadows have edges that are no boundaries, and rugs and pictures have no edge in depth.

``mmlocal make-shapes --tasks multitask`` writes the layout of NYUD-v2. With ``--layout pascal`` it
writes the layout of PASCAL-Context. The loaders of those data sets read the files::

    NYUDv2/
      images/train_000001.png          val_...   RGB
      segmentation/train_000001.png    index into SCENE_CLASSES plus 1
      depth/train_000001.npy           metres, float32
      normals/train_000001.png         2 * v / 255 - 1, RGB is x, y, z
      edge/train_000001.png            0 or 255
      human_parts/train_000001.png     index into PART_NAMES      (not in NYUD-v2)
      sal/train_000001.png             0 or 255                   (not in NYUD-v2)
      boxes_train.json                 COCO boxes of SOLID_CLASSES (not in NYUD-v2)
      gt_sets/train.txt                names of the scenes
    PASCALContext/
      JPEGImages/train_000001.jpg
      semseg/pascal-context/train_000001.png   index into SCENE_CLASSES
      pascal-context/trainval/train_000001.mat LabelMap, one number for each surface
      human_parts/train_000001.mat             anno, as PASCAL-Parts has it
      normals_distill/train_000001.png
      sal_distill/train_000001.png
      boxes_train.json
      ImageSets/Context/train.txt
"""

from mmlocal.datasets.scenes.compose import PART_NAMES, SCENE_CLASSES, SOLID_CLASSES
from mmlocal.datasets.scenes.export import (
    MIN_SCENE_SIDE,
    SCENE_SIZE,
    make_room_scene,
    write_scenes,
)
from mmlocal.datasets.scenes.layouts import LAYOUTS

#: RGB of each class in drawings of predictions and labels.
SCENE_PALETTE: tuple[tuple[int, int, int], ...] = (
    (152, 118, 84),
    (174, 199, 232),
    (230, 230, 230),
    (148, 103, 189),
    (227, 208, 40),
    (31, 119, 180),
    (255, 127, 14),
    (44, 160, 44),
    (23, 190, 207),
    (214, 39, 40),
)

__all__ = [
    "LAYOUTS",
    "MIN_SCENE_SIDE",
    "PART_NAMES",
    "SCENE_CLASSES",
    "SCENE_PALETTE",
    "SCENE_SIZE",
    "SOLID_CLASSES",
    "make_room_scene",
    "write_scenes",
]
