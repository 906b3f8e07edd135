"""The unified local attention, written out pair by pair or with every window unfolded."""

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlocal.layers import UnifiedLocalAttention


def project(layer: UnifiedLocalAttention, x: Tensor) -> dict[str, Tensor]:
    """Compute q, k and v of the terms in use, ``(B, H, W, C)`` each."""
    terms = set(layer.attend.terms)
    names = [
        name
        for name, users in (("q", {"qk", "qr"}), ("k", {"qk", "rk"}), ("v", terms))
        if terms & users or layer.hadamard
    ]
    weights = layer.qkv.weight.chunk(len(names))
    biases = layer.qkv.bias.chunk(len(names))
    parts = {n: x @ w.T + b for n, w, b in zip(names, weights, biases, strict=True)}
    if layer.hadamard:
        parts["q"] = parts["k"] = parts["q"] * parts["k"]
    return parts


def normalise(layer: UnifiedLocalAttention, scores: Tensor) -> Tensor:
    """Normalise over the last dimension."""
    if layer.attend.norm == "softmax":
        return scores.exp() / scores.exp().sum(dim=-1, keepdim=True)
    if layer.attend.norm == "identity":
        return scores
    taps = scores.shape[-1]
    centred = scores - scores.sum(dim=-1, keepdim=True) / taps
    variance = centred.square().sum(dim=-1, keepdim=True) / (taps - 1)
    return centred / variance.sqrt() / taps**0.5


def score(layer: UnifiedLocalAttention, head: int, q, k, row: Tensor) -> Tensor:
    """Compute the scores of keys ``(..., C)`` for queries of the same shape, at rows of tables."""
    attend, width = layer.attend, layer.embed_dims // layer.num_heads
    part = slice(head * width, (head + 1) * width)
    total = torch.zeros((), dtype=torch.float64)
    if "qk" in attend.terms:
        total = total + attend.qk_scale * (q[..., part] * k[..., part]).sum(-1)
    if "qr" in attend.terms:
        rk = attend.relative_position_key_table[row][..., part]
        total = total + attend.qk_scale * (q[..., part] * rk).sum(-1)
    if "rk" in attend.terms:
        rq = attend.relative_position_query_table[row][..., part]
        total = total + attend.qk_scale * (rq * k[..., part]).sum(-1)
    if "rb" in attend.terms:
        total = total + attend.relative_position_bias_table[row][..., head]
    return total


def ghost(layer: UnifiedLocalAttention, channel: int, weights: Tensor, row: Tensor) -> Tensor:
    """Apply eq. 8 to the weights of one channel."""
    head = layer.attend.ghost_head
    if head is None:
        return weights
    maps = (head.add if head.mul is None else head.mul).shape[0]
    index = channel // (layer.embed_dims // maps)
    if head.mul is not None:
        weights = head.mul[index, row] ** head.lam * weights
    if head.add is not None:
        weights = weights + head.gamma * head.add[index, row]
    return weights


def neighborhoods(layer: UnifiedLocalAttention, x: Tensor) -> Tensor:
    size, dilation, reach = layer.kernel_size, layer.dilation, layer.padding
    parts = project(layer, x)
    batch, height, width, dims = x.shape

    def unfold(part: Tensor) -> Tensor:
        columns = F.unfold(part.permute(0, 3, 1, 2), size, dilation, reach)
        return columns.view(batch, dims, size**2, height, width).permute(0, 3, 4, 2, 1)

    q = parts["q"][..., None, :] if "q" in parts else None
    k = unfold(parts["k"]) if "k" in parts else None
    v = unfold(parts["v"])
    row = torch.arange(size**2)
    out = []
    for channel in range(dims):
        head = channel // (dims // layer.num_heads)
        scores = score(layer, head, q, k, row).expand(batch, height, width, size**2)
        weights = ghost(layer, channel, normalise(layer, scores), row)
        out.append((weights * v[..., channel]).sum(-1))
    return layer.proj(torch.stack(out, dim=-1))


def windows(layer: UnifiedLocalAttention, x: Tensor) -> Tensor:
    """Loop over windows. Tokens see only the tokens of their own part of the map."""
    size, step = layer.window_size, layer.window_size // 2 if layer.shift else 0
    batch, height, width, dims = x.shape
    x = F.pad(x, (0, 0, 0, -width % size, 0, -height % size))
    rows, columns = x.shape[1:3]
    parts = project(layer, x)
    out = [[[None] * columns for _ in range(rows)] for _ in range(batch)]
    place = [(y, x) for y in range(size) for x in range(size)]
    row = torch.tensor(
        [
            [(qy - ky + size - 1) * (2 * size - 1) + qx - kx + size - 1 for ky, kx in place]
            for qy, qx in place
        ]
    )
    for b in range(batch):
        for top in range(step, rows + step, size):
            for left in range(step, columns + step, size):
                ys = torch.tensor([top + y for y, _ in place])
                xs = torch.tensor([left + x for _, x in place])
                # beyond the end, the window goes on at the beginning of the map
                wrapped = (ys >= rows).long() * 2 + (xs >= columns).long()
                same = wrapped[:, None] == wrapped[None]
                ys, xs = ys % rows, xs % columns
                q, k, v = (
                    parts[name][b, ys, xs] if name in parts else None for name in ("q", "k", "v")
                )
                results = []
                for channel in range(dims):
                    head = channel // (dims // layer.num_heads)
                    q_, k_ = (None if q is None else q[:, None]), (None if k is None else k[None])
                    scores = score(layer, head, q_, k_, row)
                    if layer.attend.norm == "softmax":
                        scores = scores.masked_fill(~same, -torch.inf)
                    weights = ghost(layer, channel, normalise(layer, scores), row)
                    results.append((weights * same * v[None, :, channel]).sum(-1))
                result = torch.stack(results, dim=-1)
                for i in range(size**2):
                    out[b][int(ys[i])][int(xs[i])] = result[i]
    stacked = torch.stack([torch.stack([torch.stack(line) for line in image]) for image in out])
    return layer.proj(stacked[:, :height, :width])
