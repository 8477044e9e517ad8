"""What several programs of this folder share: the training loop, the share of right answers, and a report of both.

The loop works with the model, loss and optimizer of gpuconv and with those of PyTorch.
"""

import numpy as np

import gpuconv


def fit(model, inputs, targets, criterion, optimizer, steps, batch, scheduler=None):
    """Train on one batch after another, in order, and again from the first; returns the loss of each step."""
    losses = []
    model.train()
    for step in range(steps):
        first = step * batch % len(inputs)
        chosen = slice(first, first + batch)
        loss = criterion(model(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        losses.append(loss.item())
    return losses


def accuracy(model, inputs, targets):
    """The share of inputs for which the largest output is that of the target's class, in evaluation mode.

    Inputs and targets are arrays of NumPy.
    """
    model.eval()
    with gpuconv.no_grad():
        return (model(gpuconv.from_numpy(inputs)).argmax(1) == gpuconv.from_numpy(targets)).float().mean().item()


def report(losses, right, least, what="pictures"):
    """Print the loss of the first ten steps and of the last ten, and that enough of the new ones are right."""
    print(f"loss: first steps {np.mean(losses[:10]):.2f}, last steps {np.mean(losses[-10:]):.2f}")
    assert right > least, right
    print(f"new {what}: more than {least:.0%} right")
