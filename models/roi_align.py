"""RoIAlign on the CPU as one weighted sum of feature vectors, several times faster than torchvision's kernel.

A pooled bin is a weighted sum of feature vectors: `sampling_ratio`² samples of 4 neighbours each. With all feature maps
laid out as one table, a row a location, the pooling of a whole batch is a single `embedding_bag`. Positions, weights
and border rules are those of torchvision's kernel (`aligned=False`), so only the order of the additions differs.
"""

from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.poolers import _convert_to_roi_format, _filter_input, _setup_scales, initLevelMapper


class BagMultiScaleRoIAlign(MultiScaleRoIAlign):
    """torchvision's MultiScaleRoIAlign, computed by `bag_roi_align` where that can be done."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        """Pooled features (sum of boxes, channels, *output_size), in the features' dtype, as torchvision's."""
        maps = _filter_input(x, self.featmap_names)
        if not self._can_bag(maps):
            return super().forward(x, boxes, image_shapes)
        if self.scales is None or self.map_levels is None:
            self.scales, self.map_levels = _setup_scales(maps, image_shapes, self.canonical_scale, self.canonical_level)
        rois = _convert_to_roi_format(boxes)
        levels = self.map_levels(boxes).clamp(0, len(maps) - 1)
        return bag_roi_align(maps, rois, levels, self.scales, self.output_size, self.sampling_ratio)

    def _can_bag(self, maps: list[Tensor]) -> bool:
        # On a GPU torchvision's kernel is the fast one. Exporters know roi_align as an operator of its own.
        exporting = torchvision._is_tracing() or torch.compiler.is_exporting()
        return not exporting and self.sampling_ratio > 0 and all(m.device.type == "cpu" for m in maps)


def bag_roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> Tensor:
    """Pool `rois` from the level each belongs to.

    maps: one (N, C, H, W) a level; rois: (K, 5), image index and xyxy in image pixels; levels: (K,) int64;
    scales: image pixels to map cells, one a level. Returns (K, C, *output_size) in the dtype of the maps.
    Gradients flow to the maps only.
    """
    dtype = maps[0].dtype
    # torchvision's kernel computes in float32 under autocast too: half precision would blur positions and sums.
    working_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    channels = maps[0].shape[1]
    table = torch.cat([m.permute(0, 2, 3, 1).reshape(-1, channels) for m in maps]).to(working_dtype)
    rows, weights = _bags(maps, rois.detach().to(working_dtype), levels, scales, output_size, sampling_ratio)
    if rows.numel() == 0:
        # embedding_bag refuses no bags at all; the sum keeps the maps in the graph, with zero gradients.
        return (table.sum() * 0).to(dtype).expand(0, channels, *output_size)
    pooled = F.embedding_bag(rows, table, per_sample_weights=weights, mode="sum")
    return pooled.to(dtype).unflatten(0, (len(rois), *output_size)).permute(0, 3, 1, 2)


def _bags(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: tuple[int, int],
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """Table rows and weights of every bin: (K · bins, entries) each."""
    heights = torch.tensor([m.shape[2] for m in maps])
    widths = torch.tensor([m.shape[3] for m in maps])
    sizes = torch.tensor([m.shape[0] * m.shape[2] * m.shape[3] for m in maps])
    height, width = heights[levels], widths[levels]
    first_row = (sizes.cumsum(0) - sizes)[levels] + rois[:, 0].long() * height * width

    boxes = rois[:, 1:] * torch.tensor(scales, dtype=rois.dtype)[levels, None]
    y, y_weight = _axis(boxes[:, 1], boxes[:, 3], height, output_size[0], sampling_ratio)
    x, x_weight = _axis(boxes[:, 0], boxes[:, 2], width, output_size[1], sampling_ratio)
    entries = y.shape[2] * x.shape[2]
    row_starts = first_row[:, None, None] + y * width[:, None, None]
    rows = row_starts[:, :, None, :, None] + x[:, None, :, None, :]
    weights = y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]
    return rows.reshape(-1, entries), weights.reshape(-1, entries)


def _axis(start: Tensor, end: Tensor, cells: Tensor, bins: int, sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """Neighbours of the samples along one axis and their weights: (K, bins, 2 · sampling_ratio) each.

    The order of operations is the kernel's own, so that rounding chooses the same neighbours.
    """
    bin_size = ((end - start).clamp(min=1.0) / bins)[:, None, None]
    bin_index = torch.arange(bins, dtype=start.dtype)[None, :, None]
    sample = torch.arange(sampling_ratio, dtype=start.dtype) + 0.5
    position = start[:, None, None] + bin_index * bin_size + sample * bin_size / sampling_ratio

    last = (cells - 1)[:, None, None]
    inside = (position >= -1.0) & (position <= (last + 1).to(position.dtype))
    # A sample up to one cell outside takes the value of the edge; those further out count zero (`inside`).
    position = torch.minimum(position.clamp(min=0.0), last.to(position.dtype))
    # A box that is not a number (a diverged model) must give such features, not an index outside of the table.
    low = position.nan_to_num().long()
    high = torch.minimum(low + 1, last)
    fraction = position - low
    share = inside.to(position.dtype) / sampling_ratio
    neighbours = torch.cat([low, high], dim=2)
    return neighbours, torch.cat([(1.0 - fraction) * share, fraction * share], dim=2)


def install_fast_roi_align(model: nn.Module) -> None:
    """Replace a Faster R-CNN's RoI pooling, where it is torchvision's, by the fast one of the same results."""
    old = model.roi_heads.box_roi_pool
    if type(old) is not MultiScaleRoIAlign:
        return
    new = BagMultiScaleRoIAlign(
        old.featmap_names,
        old.output_size,
        old.sampling_ratio,
        canonical_scale=old.canonical_scale,
        canonical_level=old.canonical_level,
    )
    new.scales, new.map_levels = old.scales, old.map_levels
    model.roi_heads.box_roi_pool = new


def fix_pooling_scales(pool: MultiScaleRoIAlign, strides: Sequence[int]) -> None:
    """Give the pooling the strides of its maps.

    torchvision infers them from the first batch it sees and keeps them. Where that is under 96 pixels high, the padding
    misleads it, for all later batches too: a resumed run would then differ from an uninterrupted one.
    """
    lowest, highest = (int(stride).bit_length() - 1 for stride in (strides[0], strides[-1]))
    pool.scales = [1 / stride for stride in strides]
    pool.map_levels = initLevelMapper(
        lowest, highest, canonical_scale=pool.canonical_scale, canonical_level=pool.canonical_level
    )
