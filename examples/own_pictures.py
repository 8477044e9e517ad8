"""Pictures of one's own, a folder a class: made here as PNG files, learned from the folder, and recognised.

    python examples/own_pictures.py [DIR] [--pictures N] [--epochs N]

It is what `gpuconv train --data DIR --model resnet20` does, as a program. To learn from other pictures, put those of
each class into a folder of its name.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from gpuconv.data import read_picture
from gpuconv.training import EpochEnd, FolderRead, TrainConfig, fit

SIDE = 40  # pixels of a picture; the network gets 32x32 of them


def draw(kind, rng):
    """A shape of any bright colour, size and place, on a dark one, in noise."""
    picture = Image.new("RGB", (SIDE, SIDE), tuple(rng.integers(0, 90, 3).tolist()))
    pen, colour = ImageDraw.Draw(picture), tuple(rng.integers(120, 256, 3).tolist())
    size = int(rng.integers(SIDE // 3, 2 * SIDE // 3))
    x, y = rng.integers(2, SIDE - size - 2, 2).tolist()
    if kind == "circle":
        pen.ellipse((x, y, x + size, y + size), fill=colour)
    elif kind == "square":
        pen.rectangle((x, y, x + size, y + size), fill=colour)
    elif kind == "triangle":
        pen.polygon([(x, y + size), (x + size, y + size), (x + size // 2, y)], fill=colour)
    else:
        third = size // 3
        pen.rectangle((x + third, y, x + size - third, y + size), fill=colour)
        pen.rectangle((x, y + third, x + size, y + size - third), fill=colour)
    noisy = np.asarray(picture) + rng.normal(0, 10, (SIDE, SIDE, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def make_pictures(folder, count, seed=0):
    """`count` pictures of each of four shapes, in a folder each."""
    rng = np.random.default_rng(seed)
    for kind in ("circle", "cross", "square", "triangle"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            draw(kind, rng).save(folder / kind / f"{number}.png")


def tell(event):
    if isinstance(event, FolderRead):
        print(f"{len(event.classes)} classes: {', '.join(event.classes)}")
    elif isinstance(event, EpochEnd):
        print(f"epoch {event.epoch}: loss {event.train_loss:.3f}, {event.train_accuracy:.1%} right")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", help="folder of pictures, a folder a class; by default some are made")
    parser.add_argument("--pictures", type=int, default=250, help="how many of each class to make")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(arguments.folder or Path(temporary, "shapes"))
        if arguments.folder is None:
            make_pictures(folder, arguments.pictures)
        began, used = time.perf_counter(), time.process_time()
        config = TrainConfig(
            data=folder, model="resnet20", epochs=arguments.epochs, batch_size=8, optimizer="adam", lr=0.003,
            weight_decay=0, augment="flip", validation_fraction=0,
        )  # fmt: skip
        result = fit(config, Path(temporary, "run"), on_event=tell)
        seconds, cpu = time.perf_counter() - began, time.process_time() - used
        print(f"{result.test_accuracy:.1%} of the pictures held out are right, after {seconds:.0f} s ({cpu:.0f} s CPU)")
        assert arguments.folder or result.test_accuracy > 0.95
        # A picture that nobody has seen yet, of another size.
        if arguments.folder is None:
            new = Path(temporary, "new.png")
            draw("cross", np.random.default_rng(99)).resize((200, 150)).save(new)
            probabilities = result.model.predict(read_picture(new, result.model.form))
            answer = result.model.classes[int(probabilities.argmax())]
            print(f"a new picture of a cross: {answer}")
            assert answer == "cross"


if __name__ == "__main__":
    main()
