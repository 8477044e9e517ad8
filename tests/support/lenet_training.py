"""A training step, and a network trained by it on any backend, captured or not: for comparing backends."""

import numpy as np

import gpuconv
from bench.contenders import training_step as step_of
from gpuconv import Tensor, models, nn, optim
from gpuconv.data import InputTransform, load_dataset


def small():
    """LeNet with one block instead of two, and two layers behind it instead of three."""
    block = [nn.Conv2d(1, 6, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*block, nn.Flatten(), nn.Linear(6 * 14 * 14, 12), nn.ReLU(), nn.Linear(12, 10))


def trained(backend, steps, dtype, batch, *, captured=True, weights=(), network=models.LeNet5):
    """Losses, the first step's gradients, the weights that each step began with, and the model.

    `weights`: those that each step is to begin with, instead of what the one before left.
    """
    dataset = load_dataset("mnist-sample")
    chosen = np.arange(steps * batch) % len(dataset.train_images)
    images = InputTransform.fit(dataset.train_images, (32, 32))(dataset.train_images)[chosen].astype(dtype)
    labels = dataset.train_labels[chosen]
    gpuconv.manual_seed(0)
    losses, gradients, began = [], None, []
    with gpuconv.use_backend(backend):
        model = network()
        for parameter in model.parameters():
            parameter.data = parameter.data.astype(dtype)
        model.to(backend)
        optimizer = optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        step = step_of(model, optimizer)
        run = gpuconv.capture(step) if captured else step
        for number in range(steps):
            if weights:
                model.load_state_dict(weights[number])
            began.append(model.state_dict())
            part = slice(number * batch, (number + 1) * batch)
            losses.append(run(Tensor(images[part]), labels[part]).item())
            gradients = gradients or [parameter.grad.numpy().copy() for parameter in model.parameters()]
    return losses, gradients, began, model
