"""What is said of a metric that no checkpoint has."""

from tracking.metric_names import metrics_meant


def test_close_metrics_and_overall_ones_are_named_and_the_others_counted():
    overall = [f"val/{name}" for name in ("AP", "AP50", "AR_100")]
    many = [f"val/AP/class{number}" for number in range(90)] + ["eval/shapes/val/AP", "train/loss"]
    told = metrics_meant("nothing", [*many, *overall])
    assert told == "there are: val/AP, val/AP50, val/AR_100 and 92 of classes and evaluations"
    assert metrics_meant("val/APX", overall) == "is it val/AP or val/AP50? there are: val/AP, val/AP50, val/AR_100"
    assert metrics_meant("val/AP/clas7", [*many, *overall]).startswith("is it val/AP/class7 or ")
    assert metrics_meant("val/AP", []) == "there are: none"
