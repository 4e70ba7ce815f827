"""Pictures of detections. The only door to supervision."""

import numpy as np

LEGIBLE = 400  # pixels on the longer side: below it a drawn word cannot be read


def draw(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, texts: list[str]) -> np.ndarray:
    """Boxes (N, 4) xyxy in absolute pixels, coloured by label, and texts, on a copy of `image` (H, W, 3) uint8 RGB.

    A small image is drawn enlarged by a whole factor.
    """
    import supervision

    factor = -(-LEGIBLE // max(image.shape[:2]))
    drawn = image.repeat(factor, axis=0).repeat(factor, axis=1)
    found = supervision.Detections(xyxy=boxes.reshape(-1, 4) * float(factor), class_id=labels.astype(int))
    size = drawn.shape[1::-1]
    thickness = supervision.calculate_optimal_line_thickness(size)
    scale = supervision.calculate_optimal_text_scale(size)
    colors = supervision.ColorPalette.from_matplotlib("tab10", 10)
    drawn = supervision.BoxAnnotator(colors, thickness=thickness).annotate(drawn, found)
    return supervision.LabelAnnotator(colors, text_scale=scale, text_padding=3).annotate(drawn, found, labels=texts)
