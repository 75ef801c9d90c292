"""A model of your own pictures, in Python: read a folder, train, draw each class.

    python examples/bring_your_own_data.py ./pictures --seconds 600 --out drawn.png

The folder has one subfolder per class, or pictures and no subfolder. The notes of the data set
say what `load_dataset` found and which files it skipped. docs/your-own-data.md does the
same on the command line.
"""

import argparse
from pathlib import Path

from mnist_transformer import load, load_dataset, train
from mnist_transformer.utils.images import enlarge, grid, save_png


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Train on a folder of pictures and draw.")
    parser.add_argument("folder")
    parser.add_argument("--recipe", default="patch", help="patch, ddpm, mar or pixel")
    parser.add_argument("--size", type=int, default=32, help="height and width of the images")
    parser.add_argument("--seconds", type=float, default=600, help="how long to train")
    parser.add_argument("--run", default="runs/own", help="the folder of the run")
    parser.add_argument("--out", default="drawn.png", help="the drawn images, a PNG file")
    options = parser.parse_args(arguments)

    dataset = load_dataset("folder", options.folder, size=options.size)
    for note in dataset.notes:
        print(note)
    weights = train(
        options.recipe,
        options.run,
        data=dataset,
        max_seconds=options.seconds,
        report=lambda record: print(record.message) if record.message else None,
    )
    model = load(weights)
    labels = [label for label in range(model.num_classes) for _ in range(8)]  # a row each
    drawn = model.sample(labels, seeds=range(len(labels)))
    save_png(enlarge(grid(drawn, columns=8)), Path(options.out))
    print(f"drew {options.out}: {', '.join(model.class_names)}, a row each")


if __name__ == "__main__":
    main()
