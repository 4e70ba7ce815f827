"""Detect objects in images with a checkpoint: JSON lines on stdout, drawn images in a folder."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import config as options
import workspace
from progress import Progress, say

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Detect objects in images: by default with models/faster_rcnn. One JSON line an image goes to stdout."""

    sources: options.Positional[options.Sources]
    """Images, folders of images, or glob patterns."""
    run: options.Text = None
    """A RUN (ID, unique prefix or name): its checkpoint is fetched from MLflow, models/faster_rcnn stays as it is."""
    checkpoint: options.File = None
    """A checkpoint file. [models/faster_rcnn/checkpoint.pth]"""
    which: str = "best"
    """Of a RUN: best, last or an epoch's number."""
    metric: str = "val/AP"
    """What makes a checkpoint the best."""
    score_threshold: float = 0.5
    """Leave out detections below this score."""
    output: options.File = None
    """Folder for the images with their boxes drawn."""
    batch_size: int = 4
    """Images at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self):
        if not self.sources:
            raise options.ConfigError("Give images, folders or patterns: python infer.py SOURCE …")
        workspace.require_one_source(self)
        if not 0 <= self.score_threshold <= 1:
            raise options.ConfigError(f"--score-threshold must be in 0..1, not {self.score_threshold}")
        if self.batch_size < 1:
            raise options.ConfigError(f"--batch-size must be above 0, not {self.batch_size}")


def main(config: InferConfig) -> Iterator[dict[str, Any]]:
    """Yield one result an image: {image, width, height, detections: [{box, label, score}]} or {image, error}."""
    import torch

    import engine
    from tracking.store import open_store

    files = image_files(config.sources)
    names = drawn_names(files)
    if config.output is not None:
        workspace.require_writable(config.output)
        overwritten = [file for file in files if (config.output / names[file]).resolve() == file.resolve()]
        if overwritten:
            raise workspace.WorkspaceError(f"--output {config.output} would overwrite {overwritten[0]}: choose another")
    store = open_store(workspace.ROOT, must_exist=True) if config.run else None
    with workspace.checkpoint_file(store, config) as path:
        model, checkpoint = workspace.load_detector(path)
    say(f"detecting with {workspace.introduce(checkpoint)}")
    device = engine.choose_device(config.device)
    model.to(device)
    with Progress("infer", len(files), unit="images") as progress:
        for start in range(0, len(files), config.batch_size):
            batch = files[start : start + config.batch_size]
            images, failed = read_images(batch)
            tensors = [torch.from_numpy(image).permute(2, 0, 1) for image in images.values()]
            targets = [{"image_id": number} for number in range(len(tensors))]
            found = engine.predict(model, [(tensors, targets)] if tensors else [], device=device)
            detections = dict(zip(images, found, strict=True))
            for file in batch:
                progress.step()
                if file in failed:
                    yield {"image": str(file), "error": failed[file]}
                    continue
                yield result(file, images[file], detections[file], checkpoint["classes"], config, names[file])


def image_files(sources: Sequence[str]) -> list[Path]:
    """The image files that the sources name, in order; WorkspaceError names a source that has none."""
    files: list[Path] = []
    for source in sources:
        path = Path(source)
        if path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
        else:
            found = [path] if path.exists() else sorted(matching(source))
        if not found:
            raise workspace.WorkspaceError(
                f"{source} names no image ({', '.join(IMAGE_SUFFIXES)}), folder or pattern that is there"
            )
        files += found
    return list(dict.fromkeys(files))


def matching(pattern: str) -> Iterator[Path]:
    """The files that a glob pattern names; `**` means any depth."""
    path = Path(pattern)
    return Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))


def read_images(files: Sequence[Path]) -> tuple[dict[Path, Any], dict[Path, str]]:
    """The images that can be read, and why the others cannot: one bad file leaves the others their results."""
    from data.images import read_image
    from data.records import DataError

    images, failed = {}, {}
    for file in files:
        try:
            images[file] = read_image(file)
        except DataError as error:
            failed[file] = str(error)
            say(f"error: {error}")
    return images, failed


def drawn_names(files: Sequence[Path]) -> dict[Path, str]:
    """A file name of its own for each drawn image: the image's, with its folders before it where others share it."""
    stems = Counter(file.stem for file in files)
    whole = {file: "_".join(file.absolute().parts[1:]) for file in files}
    return {file: f"{file.stem if stems[file.stem] == 1 else whole[file]}.png" for file in files}


def result(
    file: Path, image: Any, found: Any, classes: Sequence[str], config: InferConfig, drawn_name: str
) -> dict[str, Any]:
    """One image's result; draws it too when asked."""
    kept = found.scores >= config.score_threshold
    boxes, labels, scores = found.boxes[kept], found.labels[kept], found.scores[kept]
    names = [classes[label - 1] for label in labels]
    if config.output is not None:
        draw_to(
            config.output / drawn_name,
            image,
            boxes,
            labels,
            [f"{n} {s:.2f}" for n, s in zip(names, scores, strict=True)],
        )
    rows = [
        {"box": [round(float(side), 2) for side in box], "label": name, "score": round(float(score), 4)}
        for box, name, score in zip(boxes, names, scores, strict=True)
    ]
    return {"image": str(file), "width": image.shape[1], "height": image.shape[0], "detections": rows}


def draw_to(path: Path, image: Any, boxes: Any, labels: Any, texts: list[str]) -> None:
    from PIL import Image

    import figures

    Image.fromarray(figures.draw(image, boxes, labels, texts)).save(path)


def script(config: InferConfig) -> int:
    failures = 0
    for one in main(config):
        print(json.dumps(one), flush=True)
        failures += "error" in one
    return 1 if failures else 0


if __name__ == "__main__":
    options.command(script, lambda: options.parse(InferConfig))
