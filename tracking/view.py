"""How the MLflow UI arranges an experiment's charts, kept with the experiment as a view that its users share.

By itself the UI puts charts in the order of their names and covers sample pictures with the run's parameters. What it
calls a shared view, an experiment's tag that is read where its key is in the address, says otherwise. Charts that are
not in the view follow those that are.
"""

import json
from typing import Any

VIEW = "overview"
TAG = f"mlflow.sharedViewState.{VIEW}"
SAMPLE_PICTURES = 4

SECTIONS = {
    "result": ("best/AP", "val/AP", "val/AP50", "val/AP75"),
    "predictions": tuple(f"predictions/{number}" for number in range(1, SAMPLE_PICTURES + 1)),
    "train": ("train/loss", "train/loss_classifier", "train/loss_box_reg", "train/lr", "train/images_per_second"),
}
# Evaluations and comparisons have no epochs: the UI draws ten runs, the newest, and has them in every legend.
TRAININGS = "params.epochs != ''"
COLUMNS = (
    *("attributes.`Created`", "attributes.`Duration`", "metrics.`best/AP`", "metrics.`val/AP`", "metrics.`val/AP50`"),
    *("params.`model`", "params.`augmentation`", "params.`lr`", "params.`seed`", "tags.`group`"),
)


def arrange_charts(client, experiment_id: str) -> None:
    """Give the experiment our view, unless it has it."""
    from mlflow.exceptions import MlflowException

    arranged = overview()
    if client.get_experiment(experiment_id).tags.get(TAG) == arranged:
        return
    try:
        client.set_experiment_tag(experiment_id, TAG, arranged)
    except MlflowException:  # another first user of the experiment may have done so at this very moment
        if client.get_experiment(experiment_id).tags.get(TAG) != arranged:
            raise


def overview() -> str:
    """The view of trainings as the UI reads it: validation first, then sample pictures, losses; results as columns."""
    state = {
        "compareRunSections": [{"uuid": name, "name": name, "display": True, "isReordered": True} for name in SECTIONS],
        "compareRunCharts": [_chart(key, section) for section, keys in SECTIONS.items() for key in keys],
        "isAccordionReordered": True,
        "searchFilter": TRAININGS,
        "selectedColumns": list(COLUMNS),
        "runsHiddenMode": "FIRST_10_RUNS",
        "hideEmptyCharts": True,
        "autoRefreshEnabled": True,
    }
    return json.dumps(state, separators=(",", ":"))


def _chart(key: str, section: str) -> dict[str, Any]:
    common = {"uuid": key, "metricSectionId": section, "runsCountToCompare": 10, "isGenerated": True}
    if section == "predictions":
        return common | {"type": "IMAGE", "imageKeys": [key], "step": 0, "showRunParams": False}
    scales = {"lineSmoothness": 0, "scaleType": "linear", "xAxisScaleType": "linear", "range": {}}
    axes = {"xAxisKey": "step", "useGlobalXaxisKey": True, "selectedXAxisMetricKey": "", "yAxisKey": "metric"}
    return common | {"type": "LINE", "metricKey": key, "yAxisExpressions": []} | scales | axes
