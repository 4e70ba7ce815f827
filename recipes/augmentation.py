"""Draw the README's picture of the augmentation presets, a column each.

python -m recipes.augmentation PATH/TO/BCCD results/augmentation.jpg
"""

import argparse
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    """Draw the picture and print its path."""
    parser = argparse.ArgumentParser(prog="python -m recipes.augmentation", description=__doc__)
    parser.add_argument("data", help="a folder or file as for train.py --data, or: generated")
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=int, default=2, help="rows")
    parser.add_argument("--seed", type=int, default=33)
    options = parser.parse_args(arguments)

    import preview
    from data.open import open_data
    from data.transforms import PRESETS

    names = [name for name in PRESETS if name != "none"]
    preview.write_presets(open_data(options.data), options.file, names, seed=options.seed, images=options.images)
    print(options.file)


if __name__ == "__main__":
    main()
