"""torchvision's RoI heads with their training written out, so that the box head's loss can be another one."""

from torch import Tensor, nn
from torchvision.models.detection import roi_heads


class OpenRoIHeads(roi_heads.RoIHeads):
    """torchvision's RoIHeads; in training they take the loss `box_loss`, an attribute that may be replaced.

    box_loss(class_logits (N, C), box_regression (N, 4 C), labels, regression_targets) → (classification, boxes), of the
    N sampled proposals of a batch. labels are (n,) int64 an image, 0 the background, and regression_targets (n, 4), in
    the box coder's units. C counts the background.
    """

    box_loss = staticmethod(roi_heads.fastrcnn_loss)

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Detections (none in training) and losses (in training), as torchvision's."""
        if not self.training:
            return super().forward(features, proposals, image_shapes)
        proposals, _, labels, regression_targets = self.select_training_samples(proposals, targets)
        box_features = self.box_head(self.box_roi_pool(features, proposals, image_shapes))
        class_logits, box_regression = self.box_predictor(box_features)
        losses = self.box_loss(class_logits, box_regression, labels, regression_targets)
        return [], dict(zip(("loss_classifier", "loss_box_reg"), losses, strict=True))


def install_open_roi_heads(model: nn.Module) -> None:
    """Write out the training of a Faster R-CNN's RoI heads; a builder's own heads, and those with masks, stay."""
    heads = model.roi_heads
    if type(heads) is roi_heads.RoIHeads and not heads.has_mask() and not heads.has_keypoint():
        heads.__class__ = OpenRoIHeads  # it adds no state, and torchvision's constructor makes them itself
