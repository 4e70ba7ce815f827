"""Detect objects in images and videos with a checkpoint: results on stdout, drawn images and videos in a folder."""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import commandline
import config as options
import fetching
import formats
import workspace
from machine import require_precision
from progress import Progress, say


@dataclass(frozen=True, kw_only=True)
class InferConfig:
    """Detect objects in images and videos: by default with models/faster_rcnn. The results go to stdout."""

    sources: commandline.Positional[commandline.Sources]
    """Images, videos, folders of them, or glob patterns."""
    run: commandline.Text = None
    """A RUN (ID, unique prefix, name, models:/NAME@ALIAS, best): its checkpoint instead of models/faster_rcnn's."""
    checkpoint: commandline.File = None
    """A checkpoint file. [models/faster_rcnn/checkpoint.pth]"""
    model: commandline.Text = None
    """Of a --checkpoint from elsewhere whose tensors do not tell: which model it is, as for train.py."""
    classes: commandline.Classes = None
    """Of a --checkpoint that does not tell: `coco`, or a file with a class name a line, in label order."""
    which: str = "best"
    """Of a RUN: best, last or an epoch's number."""
    metric: str = "val/AP"
    """What makes a checkpoint the best; the higher the better."""
    experiment: commandline.Text = None
    """Look for the RUN in this experiment only. [all; for `best`: faster-rcnn]"""
    score_threshold: float = 0.5
    """Leave out detections below this score."""
    format: Literal["json", "coco", "csv"] = "json"
    """json: a JSON line an image or frame; coco: one COCO document at the end; csv: a row a detection."""
    output: commandline.File = None
    """Folder for the images and videos with their boxes drawn; those below 400 pixels are enlarged, to be legible."""
    frame_stride: int = 1
    """Of a video, take every Nth frame."""
    batch_size: int = 4
    """Images at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    amp: Literal["off", "bf16", "fp16"] = "off"
    """Mixed precision: bf16 also on CPUs that have it (AVX-512 BF16, AMX), fp16 on GPUs."""
    reference: bool = False
    """Compute as torchvision's own modules do: none of the faster paths to the same results."""

    def __post_init__(self):
        if not self.sources:
            raise commandline.ConfigError("Give images, videos, folders or patterns: python infer.py SOURCE …")
        fetching.require_one_source(self)
        require_precision(self.amp, self.device)
        if not 0 <= self.score_threshold <= 1:
            raise commandline.ConfigError(f"--score-threshold must be in 0..1, not {self.score_threshold}")
        for name in ("batch_size", "frame_stride"):
            if getattr(self, name) < 1:
                raise commandline.ConfigError(f"{options.flag(name)} must be above 0, not {getattr(self, name)}")


def main(config: InferConfig) -> Iterator[dict[str, Any]]:
    """Yield one result an image or frame: {image, width, height, detections: [{box, label, score}]} or {image, error}.

    Frames also have `frame`, from 0, and `seconds`. A box is xyxy in pixels of the image as displayed. A file that
    fails is named on stderr too.
    """
    return start(config)[1]


def start(config: InferConfig) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """The checkpoint's class names in label order, and the results of `main`; user's mistakes are raised at once."""
    import engine
    from sources import Pictures, find_files

    files = find_files(config.sources, leave_out=config.output)
    drawings = (
        contextlib.nullcontext() if config.output is None else Drawings(config.output, files, config.frame_stride)
    )
    device = engine.choose_device(config.device)
    amp = engine.amp_dtype(config.amp, device)
    store = fetching.store_of(config.run) if config.run else None
    with fetching.checkpoint_file(store, config) as path:
        model, checkpoint = fetching.load_detector(
            path, model=config.model, classes=config.classes, reference=config.reference
        )
    where = f" ({config.checkpoint})" if config.checkpoint else ""
    say(f"detecting with {workspace.introduce(checkpoint)}{where}")
    least = checkpoint["architecture"]["kwargs"].get("score_threshold", 0)
    if config.score_threshold < least:
        say(f"note: nothing below {least} is found: the model drops it itself (its --score-threshold in training)")
    pictures = Pictures(files, config.frame_stride)
    model.to(device)
    return checkpoint["classes"], results(config, model, checkpoint["classes"], pictures, drawings, device, amp)


def results(
    config: InferConfig, model: Any, classes: Sequence[str], pictures: Any, drawings: Any, device: Any, amp: Any
) -> Iterator[dict[str, Any]]:
    """The results of `main`, drawn too when asked."""
    with Progress("infer", pictures.total, unit="images") as progress, drawings:
        for picture, found in detected(model, pictures, config.batch_size, device, amp):
            progress.expect(pictures.total)
            progress.step()
            if picture.error is not None:
                say(f"error: {picture.error}")
                yield {"image": str(picture.file), "error": picture.error}
                continue
            kept = found.scores >= config.score_threshold
            boxes, labels, scores = found.boxes[kept], found.labels[kept], found.scores[kept]
            names = [classes[label - 1] for label in labels]
            if config.output is not None:
                texts = [f"{name} {score:.2f}" for name, score in zip(names, scores, strict=True)]
                drawings.add(picture, boxes, labels, texts)
            place = {} if picture.frame is None else {"frame": picture.frame, "seconds": round(picture.seconds, 3)}
            height, width = picture.pixels.shape[:2]
            rows = [
                {"box": [round(float(side), 2) for side in box], "label": name, "score": round(float(score), 4)}
                for box, name, score in zip(boxes, names, scores, strict=True)
            ]
            yield {"image": str(picture.file), **place, "width": width, "height": height, "detections": rows}


def detected(model: Any, pictures: Iterable[Any], batch_size: int, device: Any, amp: Any) -> Iterator[tuple[Any, Any]]:
    """Each picture with what is found in it, in order; those with an error leave the others of their batch alone."""
    import torch

    import engine

    checked = (refused_if_thin(picture, model.transform.max_size) for picture in pictures)
    while batch := list(islice(checked, batch_size)):
        good = [picture for picture in batch if picture.error is None]
        tensors = [torch.from_numpy(picture.pixels).permute(2, 0, 1) for picture in good]
        targets = [{"image_id": number} for number in range(len(good))]
        found = iter(list(engine.predict(model, [(tensors, targets)] if good else [], device=device, amp=amp)))
        for picture in batch:
            yield picture, next(found) if picture.error is None else None


def refused_if_thin(picture: Any, longest: int) -> Any:
    """The picture, or its error where no pixel of its short side is left once the long one fits into the model."""
    if picture.error is None and max(picture.pixels.shape[:2]) > longest * min(picture.pixels.shape[:2]):
        height, width = picture.pixels.shape[:2]
        error = f"{picture.file}, {width} × {height}, is too thin for this model, which sees {longest} pixels at most"
        return replace(picture, pixels=None, error=error)
    return picture


class Drawings:
    """Images and videos with their boxes drawn, in a folder; WorkspaceError where that would overwrite a source."""

    def __init__(self, folder: Path, files: Sequence[Path], frame_stride: int):
        workspace.require_writable(folder)
        self.folder, self.frame_stride = folder, frame_stride
        self.paths = {file: folder / name for file, name in drawn_names(files).items()}
        self.file: Path | None = None  # drawn last; a video among them is still open
        self.add_frame: Any = None  # to that video
        self.ending = contextlib.ExitStack()  # of that video
        sources = {file.resolve() for file in files}
        overwritten = [path for path in self.paths.values() if path.resolve() in sources]
        if overwritten:
            raise workspace.WorkspaceError(f"--output {folder} would overwrite {overwritten[0]}: choose another")

    def __enter__(self) -> "Drawings":
        return self

    def __exit__(self, *exception: Any) -> None:
        with self.writing():
            self.ending.__exit__(*exception)  # an error leaves no half video

    def add(self, picture: Any, boxes: Any, labels: Any, texts: list[str]) -> None:
        """Draw one picture; a video is finished when the next file begins, or at the end."""
        from PIL import Image

        import figures
        from data.video import new_video, read_header

        drawn, path = figures.draw(picture.pixels, boxes, labels, texts), self.paths[picture.file]
        with self.writing():
            if picture.file != self.file:
                self.ending.close()
                self.file = picture.file
                if picture.frame is not None:
                    rate = read_header(picture.file).rate / self.frame_stride
                    self.add_frame = self.ending.enter_context(new_video(path, rate, drawn.shape[1::-1]))
            if picture.frame is None:
                Image.fromarray(drawn).save(path)
            else:
                self.add_frame(drawn)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """WorkspaceError where the disk is full, say."""
        try:
            yield
        except OSError as error:
            raise workspace.WorkspaceError(f"--output {self.folder}: {error.strerror or error}") from error


def drawn_names(files: Sequence[Path]) -> dict[Path, str]:
    """A file name of its own for each: the source's, with its folders before it where others share it."""
    from sources import is_video

    suffixes = {file: ".mp4" if is_video(file) else ".png" for file in files}
    shared = Counter(file.stem + suffix for file, suffix in suffixes.items())
    whole = {file: "_".join(file.absolute().parts[1:]) for file in files}
    return {
        file: (file.stem if shared[file.stem + suffix] == 1 else whole[file]) + suffix
        for file, suffix in suffixes.items()
    }


def script(config: InferConfig) -> int:
    classes, found = start(config)
    failures = []

    def watched() -> Iterator[dict[str, Any]]:
        for one in found:
            if "error" in one:
                failures.append(one)
            yield one

    sys.stdout.reconfigure(errors="surrogateescape")  # a file name may hold any bytes
    with contextlib.closing(found):
        formats.WRITERS[config.format](watched(), classes, sys.stdout)
    return 1 if failures else 0


if __name__ == "__main__":
    commandline.command(script, lambda: commandline.parse(InferConfig))
