"""DETR whose encoder mixes self-attention layers and QnA layers.

Source:
    Learned Queries for Efficient Local Attention, Arar et al. 2022,
    https://arxiv.org/abs/2112.11435, section on detection. No code was published.
"""

from __future__ import annotations

from typing import Any

from mmdet.models.detectors import DETR, ConditionalDETR, DetectionTransformer
from mmdet.models.layers import DetrTransformerEncoderLayer
from mmdet.structures import OptSampleList
from torch import Tensor

from mmlocal.layers import QnA
from mmlocal.layers.checks import as_side
from mmlocal.models.backbones.loading import resize_tables_on_load
from mmlocal.registry import MODELS


class QnAEncoderLayer(DetrTransformerEncoderLayer):
    """An encoder layer of DETR with :class:`~mmlocal.layers.QnA` in place of self-attention.

    The layer adds the position embeddings to the tokens before QnA, so both scores and values
    contain them. Dropout after the attention, residuals, normalisation (after each residual) and
    FFN are the same as in the self-attention layers.

    Args:
        num_heads: heads of QnA; must divide the layer's channels. ``None`` for heads of 8 channels,
            the best in the paper's ablation.
        kernel_size: odd width of QnA's windows, in tokens.
        num_queries: number of learned queries.
        **layer_cfg: arguments of mmdet's ``DetrTransformerEncoderLayer``. In ``self_attn_cfg``,
            only ``embed_dims`` and ``dropout`` matter.

    Raises:
        ValueError: ``kernel_size`` is even, ``num_heads`` does not divide the channels, or a count
            is below 1.
        TypeError: an argument has another type.
    """

    self_attn: Any  # of mmdet, until QnA replaces it

    def __init__(
        self,
        num_heads: int | None = None,
        kernel_size: int = 7,
        num_queries: int = 2,
        **layer_cfg: Any,
    ) -> None:
        super().__init__(**layer_cfg)
        # Only an odd window keeps the size of the map.
        kernel_size = as_side("kernel_size", kernel_size, odd=True)
        self.dropout = self.self_attn.dropout_layer
        self.self_attn = QnA(
            self.embed_dims,
            self.embed_dims // 8 if num_heads is None else num_heads,
            kernel_size,
            num_queries,
        )
        resize_tables_on_load(self.self_attn, antialias=True)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key_padding_mask: Tensor | None,
        map_size: tuple[int, int],
        **kwargs: Any,
    ) -> Tensor:
        """Attend to the neighbours of each token, then transform the tokens.

        Args:
            query: ``(B, H * W, C)`` tokens, row by row.
            query_pos: ``(B, H * W, C)`` position embeddings.
            key_padding_mask: ``(B, H * W)`` bool, true for padding. No token attends to padding.
                ``None`` if there is none.
            map_size: height and width ``(H, W)`` of the map, in tokens.
            **kwargs: other arguments of mmdet's encoder, which this layer ignores.

        Returns:
            ``(B, H * W, C)``.
        """
        x = (query + query_pos).unflatten(1, map_size)
        mask = None if key_padding_mask is None else key_padding_mask.unflatten(1, map_size)
        query = self.norms[0](query + self.dropout(self.self_attn(x, mask).flatten(1, 2)))
        return self.norms[1](self.ffn(query))


class _QnAEncoder(DetectionTransformer):
    """Puts QnA layers into the encoder of mmdet's DETR, or of a detector like it."""

    encoder: Any  # its config, and from _init_layers on the module

    def _init_layers(self) -> None:
        cfg = dict(self.encoder)
        indices = cfg.pop("qna_indices", ())
        qna_cfg = cfg.pop("qna_cfg", {})
        num_layers = cfg["num_layers"]
        if not set(indices) < set(range(num_layers)) or len(set(indices)) != len(indices):
            raise ValueError(
                f"encoder.qna_indices must be different layers out of 0 to num_layers - 1 = "
                f"{num_layers - 1}, but not all of them, got {indices}"
            )
        if indices and cfg.get("num_cp", -1) > 0:
            raise ValueError(
                "encoder.num_cp must be left out where encoder.qna_indices is set, because mmdet "
                f"would not count QnA layers, got {cfg['num_cp']}"
            )
        # mmdet builds the self-attention layers. Then the QnA layers are inserted between them.
        self.encoder = cfg | dict(num_layers=num_layers - len(indices))
        super()._init_layers()
        self.encoder.num_layers = num_layers
        for index in sorted(indices):
            self.encoder.layers.insert(index, QnAEncoderLayer(**qna_cfg, **cfg["layer_cfg"]))

    def init_weights(self) -> None:
        """Initialise as mmdet does, but let QnA keep its own initialisation."""
        super().init_weights()
        for module in self.encoder.modules():
            if isinstance(module, QnA):
                module.reset_parameters()

    def pre_transformer(
        self, img_feats: tuple[Tensor, ...], batch_data_samples: OptSampleList = None
    ) -> tuple[dict, dict]:
        """Prepare the inputs as mmdet does, and add ``map_size`` for the encoder."""
        encoder_inputs, decoder_inputs = super().pre_transformer(img_feats, batch_data_samples)
        return encoder_inputs | dict(map_size=img_feats[-1].shape[2:]), decoder_inputs

    def forward_encoder(
        self, feat: Tensor, feat_mask: Tensor | None, feat_pos: Tensor, map_size: tuple[int, int]
    ) -> dict:
        """Encode as mmdet does. Only QnA layers read ``map_size``."""
        memory = self.encoder(
            query=feat, query_pos=feat_pos, key_padding_mask=feat_mask, map_size=map_size
        )
        return dict(memory=memory)


@MODELS.register_module()
class DETRQnA(_QnAEncoder, DETR):
    """mmdet's DETR with some :class:`QnAEncoderLayer` in the encoder.

    The paper's DETR-QnA has four QnA layers instead of two of the six self-attention layers. The
    paper reports a gain of 1.0 AP over DETR, and 2.2 AP on small objects. It does not state the
    place of the QnA layers. The configs put them first::

        encoder=dict(num_layers=8, qna_indices=(0, 1, 2, 3), qna_cfg=dict(kernel_size=7), ...)

    Args:
        encoder: mmdet's config of the encoder, with two more entries: ``qna_indices``, the places
            of the QnA layers among the ``num_layers`` layers (none by default), and ``qna_cfg``,
            arguments of :class:`QnAEncoderLayer`.
        **kwargs: the other arguments of mmdet's ``DETR``.

    Raises:
        ValueError: ``qna_indices`` is out of range, repeats a layer, names all layers or comes
            together with ``num_cp``, or :class:`QnAEncoderLayer` refuses an argument.

    Note:
        The paper does not state the kernel size and heads of these layers, nor their position
        embeddings, normalisation and treatment of padding. All of these are our choice.

    Source:
        Learned Queries for Efficient Local Attention, Arar et al. 2022; DETR, Carion et al. 2020.
    """


@MODELS.register_module()
class ConditionalDETRQnA(_QnAEncoder, ConditionalDETR):
    """Conditional DETR with the encoder of :class:`DETRQnA`. The paper does not have it.

    Args:
        encoder: config of the encoder, with the entries that :class:`DETRQnA` describes.
        **kwargs: the other arguments of mmdet's ``ConditionalDETR``.

    Raises:
        ValueError: ``qna_indices`` is out of range, repeats a layer, names all layers or comes
            together with ``num_cp``, or :class:`QnAEncoderLayer` refuses an argument.
    """
