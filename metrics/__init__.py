"""Numbers from detections and ground truth alone, both as COCO has them: no images, no model, no GPU."""

from metrics.coco import NAMES, SCORERS, coco_ground_truth, coco_metrics, coco_results

__all__ = ["NAMES", "SCORERS", "coco_ground_truth", "coco_metrics", "coco_results"]
