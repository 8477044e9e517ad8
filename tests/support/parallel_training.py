"""``gpuconv`` with one model more, whose training draws random numbers at every step; a run draws no pictures."""

import sys

from gpuconv import cli, models, nn
from gpuconv.cli import train
from gpuconv.models import Classifier


class WithDropout(Classifier):
    """A network whose training draws random numbers at every step."""

    def __init__(self, num_classes: int = 10):
        super().__init__(
            {
                "conv": nn.Conv2d(1, 2, 5, stride=3),
                "flatten": nn.Flatten(),
                "dropout": nn.Dropout(0.3),
                "linear": nn.Linear(2 * 10 * 10, num_classes),
            },
            config={"num_classes": num_classes},
            input_shape=(1, 32, 32),
            num_classes=num_classes,
        )


if __name__ == "__main__":
    models.MODELS["with-dropout"] = WithDropout
    train._write_pictures = lambda *_: None
    sys.exit(cli.main())
