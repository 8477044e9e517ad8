"""A program as a user writes it, with the types that a type checker has to see: `make lint` checks it strictly."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import gpuconv
from gpuconv import Tensor, models, nn, optim
from gpuconv import functional as F

if TYPE_CHECKING:
    from typing import assert_type
else:

    def assert_type(value, kind):
        return value  # Python 3.10 has none


class Net(nn.Module):
    """A network of one's own, whose forward names its argument as it likes."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 5)
        self.fc = nn.Linear(6 * 14 * 14, classes)

    def forward(self, image: Tensor) -> Tensor:
        maps = F.conv2d(image, self.conv.weight, self.conv.bias)
        assert_type(maps, Tensor)
        pooled = F.max_pool2d(F.relu(maps), 2)
        return F.linear(assert_type(pooled, Tensor).flatten(1), self.fc.weight, self.fc.bias)


def train(images: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Two steps; the last loss."""
    model = Net()
    optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = optim.lr_scheduler.StepLR(optimizer, step_size=1)
    value = 0.0
    for _ in range(2):
        optimizer.zero_grad()
        loss = F.cross_entropy(model.forward(Tensor(images)), labels)
        assert_type(loss, Tensor).backward()
        optimizer.step()
        schedule.step()
        value = loss.item()
    for name, parameter in model.named_parameters():
        assert_type(name, str)
        assert_type(parameter, nn.Parameter)
        assert_type(parameter.grad, Tensor | None)
    return value


def use(images: NDArray[np.float32]) -> None:
    """Arrays in, arrays out; operators; a model that comes with the library."""
    edges = F.conv2d(images, np.ones((1, 1, 3, 3), np.float32), padding="same")
    assert_type(edges, NDArray[np.float32])
    y = (gpuconv.zeros(2, 3) + 1) * 2
    assert_type(y, Tensor)
    assert_type(2**y // 3 % y, Tensor)
    assert_type(y.shape, tuple[int, ...])
    assert_type(y.numpy(), NDArray[Any])
    with gpuconv.no_grad(), gpuconv.use_backend("numpy"):
        print(models.LeNet5().summary((1, 32, 32)))


if __name__ == "__main__":
    rng = np.random.default_rng(0)
    pictures = rng.standard_normal((8, 1, 32, 32), dtype=np.float32)
    print(train(pictures, np.arange(8)))
    use(pictures)
