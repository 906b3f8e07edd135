"""Layers with parameters, made of torch and the ops alone."""

from mmlocal.layers.block import TransformerBlock
from mmlocal.layers.checks import check_image
from mmlocal.layers.drop_path import DropPath
from mmlocal.layers.elsa import ELSA
from mmlocal.layers.even_window_attention import EvenWindowAttention
from mmlocal.layers.ghost_attention import GhostAttention
from mmlocal.layers.init import lecun_normal_
from mmlocal.layers.mlp import MLP
from mmlocal.layers.norm import LayerNorm
from mmlocal.layers.patch import PatchEmbed, PatchMerging
from mmlocal.layers.qna import QnA
from mmlocal.layers.shifted_window_attention import ShiftedWindowAttention
from mmlocal.layers.upsample_qna import UpsampleQnA
from mmlocal.layers.window_attention import WindowAttention

__all__ = [
    "ELSA",
    "MLP",
    "DropPath",
    "EvenWindowAttention",
    "GhostAttention",
    "LayerNorm",
    "PatchEmbed",
    "PatchMerging",
    "QnA",
    "ShiftedWindowAttention",
    "TransformerBlock",
    "UpsampleQnA",
    "WindowAttention",
    "check_image",
    "lecun_normal_",
]
