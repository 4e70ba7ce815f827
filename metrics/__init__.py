"""Numbers from detections and ground truth alone, both as COCO has them: no images, no model, no GPU."""

from metrics.bootstrap import NAMES, Scores, bootstrap, interval, intervals, unsampled_scores, weighted_scores
from metrics.coco import SCORERS, coco_ground_truth, coco_metrics, coco_results
from metrics.comparison import OVERALL, POWER, Difference, Evaluated, Spread, difference, evaluated, needed, spread
from metrics.curves import ThresholdCurve, confusion, precision_by_recall, threshold_curve
from metrics.matching import Matches, match

__all__ = [
    "NAMES",
    "OVERALL",
    "POWER",
    "SCORERS",
    "Difference",
    "Evaluated",
    "Matches",
    "Scores",
    "Spread",
    "ThresholdCurve",
    "bootstrap",
    "coco_ground_truth",
    "coco_metrics",
    "coco_results",
    "confusion",
    "difference",
    "evaluated",
    "interval",
    "intervals",
    "match",
    "needed",
    "precision_by_recall",
    "spread",
    "threshold_curve",
    "unsampled_scores",
    "weighted_scores",
]
