"""Draw the README's picture of detections: a row of images a run, as infer.py draws them.

python -m recipes.detections results/detections.jpg --row RUN IMAGE IMAGE IMAGE --row RUN IMAGE IMAGE
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

WIDTH = 1500  # pixels of the picture


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture and print its path."""
    parser = argparse.ArgumentParser(prog="python -m recipes.detections", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--row", nargs="+", action="append", required=True, metavar="RUN IMAGE …", help="one or more")
    options = parser.parse_args(arguments)
    if any(len(row) < 2 for row in options.row):
        parser.error("a --row takes a RUN and its images")

    import figures

    rows = [drawn_row(run, tuple(images)) for run, *images in options.row]
    figures.write(np.concatenate(rows), options.file)
    print(options.file)


def drawn_row(run: str, images: tuple[str, ...]) -> np.ndarray:
    """The images at one height, (H, WIDTH, 3) uint8 RGB together, with what the run's best checkpoint finds in them."""
    from PIL import Image

    import infer

    with tempfile.TemporaryDirectory() as folder:
        failed = [
            one for one in infer.main(infer.InferConfig(run=run, sources=images, output=Path(folder))) if "error" in one
        ]
        if failed:
            raise SystemExit("\n".join(f"{one['image']}: {one['error']}" for one in failed))
        pictures = [Image.open(path).convert("RGB") for path in sorted(Path(folder).rglob("*.*"))]
    ends = np.cumsum([0, *(picture.width / picture.height for picture in pictures)])
    edges = (ends * WIDTH / ends[-1]).round().astype(int)
    sizes = [(int(width), round(WIDTH / ends[-1])) for width in np.diff(edges)]
    return np.concatenate([np.asarray(one.resize(size)) for one, size in zip(pictures, sizes, strict=True)], axis=1)


if __name__ == "__main__":
    main()
