"""Pictures of detections. The only door to supervision."""

import numpy as np


def draw(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: list[str]) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with boxes (N, 4) xyxy in absolute pixels, coloured by label, and texts."""
    import supervision

    found = supervision.Detections(xyxy=boxes.reshape(-1, 4).astype(float), class_id=labels.astype(int))
    height, width = image.shape[:2]
    thickness = supervision.calculate_optimal_line_thickness((width, height))
    scale = supervision.calculate_optimal_text_scale((width, height))
    drawn = supervision.BoxAnnotator(thickness=thickness).annotate(image.copy(), found)
    return supervision.LabelAnnotator(text_scale=scale, text_padding=3).annotate(drawn, found, labels=texts)
