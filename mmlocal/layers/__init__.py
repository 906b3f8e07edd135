"""Layers with parameters, made of torch and the ops alone."""

from mmlocal.layers.drop_path import DropPath
from mmlocal.layers.elsa import ELSA
from mmlocal.layers.ghost_attention import GhostAttention
from mmlocal.layers.mlp import MLP
from mmlocal.layers.patch import PatchEmbed, PatchMerging
from mmlocal.layers.window_attention import ShiftedWindowAttention, WindowAttention

__all__ = [
    "ELSA",
    "MLP",
    "DropPath",
    "GhostAttention",
    "PatchEmbed",
    "PatchMerging",
    "ShiftedWindowAttention",
    "WindowAttention",
]
