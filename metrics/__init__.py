"""Numbers from detections and ground truth alone, both as COCO has them: no images, no model, no GPU."""

from metrics.bootstrap import Scores, bootstrap, interval, intervals, weighted_scores
from metrics.coco import NAMES, SCORERS, coco_ground_truth, coco_metrics, coco_results
from metrics.curves import ThresholdCurve, confusion, precision_by_recall, threshold_curve
from metrics.matching import Matches, match

__all__ = [
    "NAMES",
    "SCORERS",
    "Matches",
    "Scores",
    "ThresholdCurve",
    "bootstrap",
    "coco_ground_truth",
    "coco_metrics",
    "coco_results",
    "confusion",
    "interval",
    "intervals",
    "match",
    "precision_by_recall",
    "threshold_curve",
    "weighted_scores",
]
