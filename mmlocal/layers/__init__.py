"""Layers with parameters. They need torch and the ops, and nothing else."""

from importlib import import_module
from pkgutil import iter_modules

from mmlocal.layers.block import TransformerBlock
from mmlocal.layers.class_attention import ClassAttentionBlock
from mmlocal.layers.conv_stem import ConvStem
from mmlocal.layers.ddf import DDF
from mmlocal.layers.deformable_attention import DeformableAttention
from mmlocal.layers.deformable_mixer import DeformableMixer
from mmlocal.layers.depthwise_conv import DepthwiseConv
from mmlocal.layers.drop_path import DropPath
from mmlocal.layers.dwnet_block import DWNetBlock
from mmlocal.layers.dynamic_depthwise_conv import DynamicDepthwiseConv
from mmlocal.layers.elsa import ELSA
from mmlocal.layers.even_window_attention import EvenWindowAttention
from mmlocal.layers.ghost_attention import GhostAttention
from mmlocal.layers.ghost_head import GhostHead
from mmlocal.layers.global_attention import GlobalAttention
from mmlocal.layers.halo_attention import HaloAttention
from mmlocal.layers.image_checks import check_image
from mmlocal.layers.inhomogeneous_depthwise_conv import InhomogeneousDepthwiseConv
from mmlocal.layers.init import lecun_normal_
from mmlocal.layers.inter_task_attention import InterTaskAttention
from mmlocal.layers.inter_task_block import InterTaskBlock
from mmlocal.layers.inter_task_queries import InterTaskQueries, InterTaskQueryLayer
from mmlocal.layers.involution import Involution
from mmlocal.layers.local_attention import (
    HasGhostHead,
    HasLocalAttention,
    HasQueryPlaces,
    HasWindowAttention,
)
from mmlocal.layers.mix_token import exchange_box
from mmlocal.layers.mixers import MIXERS, build_mixer, register_mixer
from mmlocal.layers.mlp import MLP
from mmlocal.layers.norm import LayerNorm
from mmlocal.layers.outlook_attention import OutlookAttention
from mmlocal.layers.patch import PatchEmbed, PatchMerging
from mmlocal.layers.projected_mixer import ProjectedMixer
from mmlocal.layers.qna import QnA
from mmlocal.layers.sasa import SASA
from mmlocal.layers.task_attention import TaskInteraction, TaskQuery
from mmlocal.layers.task_pyramid import TaskPyramid
from mmlocal.layers.unified_local_attention import UnifiedLocalAttention
from mmlocal.layers.upsample_qna import UpsampleQnA
from mmlocal.layers.window_attention import WindowAttention
from mmlocal.layers.window_msa import WindowMSA

__all__ = [
    "DDF",
    "ELSA",
    "MIXERS",
    "MLP",
    "SASA",
    "ClassAttentionBlock",
    "ConvStem",
    "DWNetBlock",
    "DeformableAttention",
    "DeformableMixer",
    "DepthwiseConv",
    "DropPath",
    "DynamicDepthwiseConv",
    "EvenWindowAttention",
    "GhostAttention",
    "GhostHead",
    "GlobalAttention",
    "HaloAttention",
    "HasGhostHead",
    "HasLocalAttention",
    "HasQueryPlaces",
    "HasWindowAttention",
    "InhomogeneousDepthwiseConv",
    "InterTaskAttention",
    "InterTaskBlock",
    "InterTaskQueries",
    "InterTaskQueryLayer",
    "Involution",
    "LayerNorm",
    "OutlookAttention",
    "PatchEmbed",
    "PatchMerging",
    "ProjectedMixer",
    "QnA",
    "TaskInteraction",
    "TaskPyramid",
    "TaskQuery",
    "TransformerBlock",
    "UnifiedLocalAttention",
    "UpsampleQnA",
    "WindowAttention",
    "WindowMSA",
    "build_mixer",
    "check_image",
    "exchange_box",
    "lecun_normal_",
    "register_mixer",
]

# A new mixer registers itself when its file is imported. No list above has to name the file.
for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
