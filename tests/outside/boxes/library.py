"""A library of the scope ``boxes``: a classifier, a data set, and a Library class for mmlocal."""

from __future__ import annotations

import torch
from mmengine.dataset import BaseDataset
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS, TRANSFORMS, Registry
from mmengine.structures import BaseDataElement
from torch import nn

from mmlocal.libraries import Library, register_library

BOXES_MODELS = Registry("model", parent=MODELS, scope="boxes")
BOXES_DATASETS = Registry("dataset", parent=DATASETS, scope="boxes")
BOXES_TRANSFORMS = Registry("transform", parent=TRANSFORMS, scope="boxes")


@BOXES_MODELS.register_module()
class Classifier(BaseModel):
    def __init__(self, backbone: dict, data_preprocessor: dict | None = None) -> None:
        super().__init__(data_preprocessor)
        self.backbone = MODELS.build(backbone)
        self.head = nn.Linear(self.backbone.num_features[-1], 2)

    def forward(self, inputs, data_samples=None, mode="tensor"):
        inputs = torch.stack(list(inputs)) if isinstance(inputs, (list, tuple)) else inputs
        scores = self.head(self.backbone(inputs.float() / 255)[-1].mean((2, 3)))
        if mode == "loss":
            labels = torch.tensor([sample.label for sample in data_samples])
            return {"loss": nn.functional.cross_entropy(scores, labels)}
        return scores


@BOXES_TRANSFORMS.register_module()
class Pack:
    """A picture of one colour, or of a file as a command asks for it."""

    def __call__(self, item: dict) -> dict:
        image = torch.full((3, 32, 48), 60 * item.get("index", 1), dtype=torch.uint8)
        return {"inputs": image, "data_samples": BaseDataElement(label=item.get("index", 0) % 2)}


@BOXES_DATASETS.register_module()
class Colours(BaseDataset):
    def load_data_list(self) -> list[dict]:
        return [{"index": index} for index in range(4)]


@register_library
class Boxes(Library):
    name = "boxes"

    def default_shape(self, cfg) -> tuple[int, int]:
        return 32, 48

    def complete_loader(self, loader, training: bool) -> None:
        loader.setdefault("drop_last", training)
