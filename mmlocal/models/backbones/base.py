"""The frame of the backbones: stages of blocks, output norms, freezing, layer depths."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

from mmengine.model import BaseModule
from mmengine.model.weight_init import update_init_info
from torch import Tensor, nn

from mmlocal.layers.batch_norm import BATCH_NORMS
from mmlocal.layers.checks import (
    Unscripted,
    check_flag,
    check_rate,
    is_int,
    is_sequence,
)
from mmlocal.models.backbones.loading import (
    check_names_on_load,
    initialize_quietly,
    load_pretrained,
    refuse_other_names_on_load,
    resize_tables_on_load,
)

# Names that a checkpoint of a classification model does not hold, as a regular expression.
_OUTPUT_NORMS = r"norm\d+\."

# An `init_cfg`, the initialisation of Swin and DeiT.
TRUNC_NORMAL = [
    dict(type="TruncNormal", layer="Linear", std=0.02, bias=0.0),
    dict(type="Constant", layer="LayerNorm", val=1.0, bias=0.0),
]


class Stage(nn.Module):
    """Blocks on one resolution, then the merging that leads to the next one.

    Args:
        blocks: modules on ``(B, H, W, C)``.
        downsample: module that merges tokens; ``None`` if the next stage reads the output of the
            blocks.
    """

    def __init__(self, blocks: Sequence[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``(B, H, W, C)`` to the output of the blocks, and to the input of the next stage."""
        x = self.blocks(x)
        return x, x if self.downsample is None else self.downsample(x)


class LocalBackbone(Unscripted, BaseModule):
    """Frame of a backbone: stages of blocks on ``(B, H, W, C)``.

    A subclass sets ``patch_embed`` and all that its blocks need, and calls
    :meth:`_build_stages` at the end of its ``__init__``. It overrides :meth:`_make_block`, and also
    :meth:`_make_downsample` if it has several resolutions::

        class MyBackbone(LocalBackbone):
            arch_zoo = {"tiny": dict(embed_dims=64, depths=(2, 2))}

            def __init__(self, arch="tiny", drop_path_rate=0.1, out_indices=(0, 1),
                         frozen_stages=-1, init_cfg=None):
                super().__init__(init_cfg)
                arch = self._resolve_arch(arch, {"embed_dims", "depths"})
                dims = arch["embed_dims"]
                self.patch_embed = PatchEmbed(3, dims)
                self._build_stages(
                    [dims, 2 * dims], arch["depths"], drop_path_rate, out_indices, frozen_stages
                )

            def _make_block(self, stage, index, drop_path_rate):
                dims = self.num_features[stage]
                return TransformerBlock(dims, MyMixer(dims), drop_path_rate=drop_path_rate)

            def _make_downsample(self, stage, drop_path_rate):
                return PatchMerging(self.num_features[stage], self.num_features[stage + 1])

    Parameters are named ``patch_embed.*``, ``stages.{i}.blocks.{j}.*``, ``stages.{i}.downsample.*``
    and ``norm{i}.*``. Any other parameter or module of the subclass counts as an embedding: it
    freezes with the patch embedding and belongs to layer 0. The exceptions are the names in
    :attr:`_after_stages`, which never freeze and belong to the last layer. A position embedding
    after stage 0 belongs in the module that :meth:`_make_downsample` returns.

    ``init_cfg=dict(type='Pretrained', checkpoint=..., prefix=...)`` raises unless the checkpoint
    holds every parameter of the backbone with the right shape. Only the output norms ``norm{i}``
    may be missing, because a classification model lacks them. MMEngine by itself would log a
    warning and train from a partly random start.

    Every way of loading a checkpoint resizes position tables of other windows or images. It raises
    if any other tensor has another shape, or if the checkpoint has other names for all blocks or
    another kind of layer in a place.

    Args:
        init_cfg: MMEngine's config of the initialisation; ``None`` for no initialisation by
            MMEngine.
    """

    is_init: bool  # of BaseModule: whether init_weights has run
    # Architectures by name. `arch` takes a name, or such a dict.
    arch_zoo: ClassVar[dict[str, dict]] = {}
    # Whether the merging of a stage counts as a block in the ramp of drop_path_rate and in
    # get_layer_depth. If not, it belongs to the block before it.
    _downsample_is_block = False
    # Names of the modules and parameters behind the stages, such as class-attention blocks.
    _after_stages: ClassVar[frozenset[str]] = frozenset()
    # Whether to resize tables as JAX does; see `match_state_dict`.
    _antialias = False

    patch_embed: nn.Module

    def __init__(self, init_cfg: dict | list[dict] | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        check_names_on_load(self)
        resize_tables_on_load(self, self._antialias)
        refuse_other_names_on_load(self)

    @classmethod
    def _resolve_arch(
        cls,
        arch: str | Mapping[str, Any],
        required: set[str],
        optional: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Look up the name ``arch`` in :attr:`arch_zoo`, or check the keys of the dict ``arch``.

        Args:
            arch: name or dict.
            required: keys that the dict must have.
            optional: keys that the dict may have, with their defaults.

        Returns:
            All required and optional keys, with their values.

        Raises:
            ValueError: the name or a key is unknown, or a required key is missing.
            TypeError: ``arch`` is neither a name nor a dict.
        """
        optional = optional or {}
        if isinstance(arch, str):
            if arch not in cls.arch_zoo:
                raise ValueError(f"arch must be one of {sorted(cls.arch_zoo)}, got {arch!r}")
            arch = cls.arch_zoo[arch]
        if not isinstance(arch, Mapping):
            raise TypeError(f"arch must be a name or a dict, got {arch!r}")
        if not required <= set(arch) <= required | set(optional):
            raise ValueError(
                f"arch must have the keys {sorted(required)} and may have {sorted(optional)}, "
                f"got {sorted(arch)}"
            )
        return {**optional, **arch}

    def _build_stages(
        self,
        num_features: Sequence[int],
        depths: Sequence[int],
        drop_path_rate: float,
        out_indices: Sequence[int],
        frozen_stages: int,
        norm_eval: bool = False,
    ) -> None:
        """Make the stages and output norms that ``out_indices`` needs, and freeze.

        Args:
            num_features: channels of each stage.
            depths: number of blocks of each stage.
            drop_path_rate: rate of stochastic depth of the last block. The rates of the other
                blocks rise linearly from 0 to it.
            out_indices: stages to return, each through its own norm. Stages after the last one
                returned are not built, so that no parameter lacks a gradient.
            frozen_stages: -1 for none; ``n`` freezes the embeddings and the first ``n`` stages with
                their output norms.
            norm_eval: whether batch norms stay in eval mode.

        Raises:
            ValueError: the rate or a stage is out of range, or ``out_indices`` repeats a stage.
            TypeError: an argument has another type.
        """
        check_rate(below_one=True, drop_path_rate=drop_path_rate)
        check_flag(norm_eval=norm_eval)
        self.out_indices = as_out_indices(out_indices, len(depths))
        if not is_int(frozen_stages) or not -1 <= frozen_stages <= len(depths):
            raise ValueError(f"frozen_stages must be -1 to {len(depths)}, got {frozen_stages!r}")
        self.num_features = list(num_features)
        self.depths = depths
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval

        steps = sum(self._layers_of_stages())
        rates = iter([drop_path_rate * i / max(steps - 1, 1) for i in range(steps)])
        self.stages = nn.ModuleList()
        for i in range(self.out_indices[-1] + 1):
            blocks = [self._make_block(i, j, next(rates)) for j in range(depths[i])]
            downsample = None
            if i < self.out_indices[-1]:
                rate = next(rates) if self._downsample_is_block else 0.0
                downsample = self._make_downsample(i, rate)
            self.stages.append(Stage(blocks, downsample))
        for i in self.out_indices:
            self.add_module(f"norm{i}", self._make_norm(self.num_features[i]))
        self._freeze()

    def check_names(self, names: Collection[str]) -> None:
        """Refuse a checkpoint of another model, where its names tell. This class takes any names.

        Args:
            names: names in the checkpoint, without a prefix.
        """

    def _layers_of_stages(self) -> list[int]:
        """Number of blocks of each stage, including its merging if that counts as a block."""
        last = len(self.depths) - 1
        return [n + (self._downsample_is_block and i < last) for i, n in enumerate(self.depths)]

    def _make_block(self, stage: int, index: int, drop_path_rate: float) -> nn.Module:
        """Make block ``index`` of a stage: a module that keeps the shape of ``(B, H, W, C)``."""
        raise NotImplementedError(f"{type(self).__name__} must define _make_block")

    def _make_downsample(self, stage: int, drop_path_rate: float) -> nn.Module | None:
        """Make the module between a stage and the next one.

        Args:
            stage: the stage before the module.
            drop_path_rate: rate of a merging that counts as a block; 0 for any other.

        Returns:
            The module, or ``None`` if the map does not change.
        """
        return None

    def _make_norm(self, dims: int) -> nn.Module:
        """Make the norm of an output ``(B, H, W, dims)``."""
        return nn.LayerNorm(dims)

    def _embed(self, x: Tensor) -> Tensor:
        """Map the image ``(B, in_channels, H, W)`` to the input of the first stage."""
        return self.patch_embed(x)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps.

        Args:
            x: ``(B, in_channels, H, W)``, any float dtype.

        Returns:
            For each stage ``i`` of ``out_indices``, in order: ``(B, num_features[i], H_i, W_i)``.

        Raises:
            ValueError: ``x`` is not 4-D, has other channels or is smaller than a patch.
            TypeError: ``x`` is not floating point.
        """
        return self._forward_stages(self._embed(x))

    def _forward_stages(self, x: Tensor) -> tuple[Any, ...]:
        """Map the input of the first stage, ``(B, H, W, C)``, to the outputs of ``forward``."""
        outs = []
        for i, stage in enumerate(self.stages):
            out, x = stage(x)
            if i in self.out_indices:
                outs.append(self._output(i, out))
        return tuple(outs)

    def _output(self, stage: int, x: Tensor) -> Any:
        """Map ``(B, H, W, C)``, the last block's output of a stage, to an entry of the outputs."""
        return getattr(self, f"norm{stage}")(x).permute(0, 3, 1, 2).contiguous()

    def train(self, mode: bool = True) -> LocalBackbone:
        """Set the mode as ``nn.Module`` does, and keep frozen parts in eval mode.

        With ``norm_eval``, batch norms stay in eval mode, too.
        """
        super().train(mode)
        self._freeze()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, BATCH_NORMS):
                    module.eval()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        frozen = [getattr(self, name) for name in self._embeddings()]
        frozen += self.stages[: self.frozen_stages]
        frozen += [getattr(self, f"norm{i}") for i in self.out_indices if i < self.frozen_stages]
        for part in frozen:
            part.requires_grad_(False)
            if isinstance(part, nn.Module):
                part.eval()

    def _embeddings(self) -> set[str]:
        """Names of the modules and parameters that come before the stages."""
        parts = (*self.named_children(), *self.named_parameters(recurse=False))
        norms = {f"norm{i}" for i in self.out_indices}
        return {name for name, _ in parts} - {"stages"} - norms - self._after_stages

    def get_layer_depth(self, param_name: str, prefix: str = "") -> tuple[int, int]:
        """Find the layer of a parameter, for layer-wise learning-rate decay.

        Args:
            param_name: name of the parameter in the whole model.
            prefix: name of this backbone in the whole model, with a dot at the end.

        Returns:
            The parameter's layer and the number of layers. Embeddings are layer 0. Then each block
            is a layer. A merging that counts as a block is a layer, too; any other merging belongs
            to the block before it. Everything else, including output norms, is the last layer.
        """
        layers = self._layers_of_stages()
        last = sum(layers) + 1
        part, _, rest = param_name.removeprefix(prefix).partition(".")
        if not param_name.startswith(prefix):
            layer = last
        elif part in self._embeddings():
            layer = 0
        elif part == "stages":
            stage, kind, block, *_ = rest.split(".")
            before = sum(layers[: int(stage)])
            layer = before + (int(block) + 1 if kind == "blocks" else layers[int(stage)])
        else:
            layer = last
        return layer, last + 1

    def init_weights(self) -> None:
        """Initialise the parameters by ``init_cfg``.

        Raises:
            FileNotFoundError: the checkpoint does not exist.
            ValueError: the checkpoint is damaged or unsafe, or belongs to another architecture.
        """
        configs = [self.init_cfg] if isinstance(self.init_cfg, dict) else self.init_cfg or []
        pretrained = [cfg for cfg in configs if cfg["type"] == "Pretrained"]
        if self.is_init or not pretrained:
            initialize_quietly(super().init_weights)
            return
        cfg = {k: v for k, v in pretrained[-1].items() if k != "type"}
        load_pretrained(
            self,
            **cfg,
            optional=_OUTPUT_NORMS,
            antialias=self._antialias,
            check_names=self.check_names,
        )
        if hasattr(self, "_params_init_info"):
            update_init_info(self, init_info=f"PretrainedInit: load from {cfg['checkpoint']}")
        self.is_init = True


def as_out_indices(
    out_indices: Sequence[int], num_stages: int, negative: bool = False
) -> tuple[int, ...]:
    """Sort the stages to return, and count them from 0.

    Args:
        out_indices: stages to return.
        num_stages: number of stages of the backbone.
        negative: whether negative indices may count from the last stage.

    Returns:
        The stages, in order.

    Raises:
        ValueError: a stage is out of range or repeated, or ``out_indices`` is empty or not a
            sequence.
    """
    first = -num_stages if negative else 0
    if (
        not is_sequence(out_indices)
        or not out_indices
        or not all(is_int(i) and first <= i < num_stages for i in out_indices)
    ):
        raise ValueError(
            f"out_indices must name stages out of {first} to {num_stages - 1}, got {out_indices!r}"
        )
    stages = {int(i) % num_stages for i in out_indices}
    if len(stages) < len(out_indices):
        raise ValueError(f"out_indices must name no stage twice, got {out_indices}")
    return tuple(sorted(stages))


def check_per_stage(**arguments: Sequence[int]) -> None:
    """Check that entries of ``arch`` have the same number of stages.

    Args:
        **arguments: entries with one number per stage, by name.

    Raises:
        ValueError: the entries differ in length.
    """
    if len({len(values) for values in arguments.values()}) != 1:
        raise ValueError(
            f"arch must give {', '.join(arguments)} for the same number of stages, got "
            f"{', '.join(f'{name}={values}' for name, values in arguments.items())}"
        )
