"""What several programs of this folder share: the training loop, and the share of right answers.

The loop works with the model, loss and optimizer of gpuconv and with those of PyTorch.
"""

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
    """The share of inputs for which the largest output is that of the target's class, in evaluation mode."""
    model.eval()
    with gpuconv.no_grad():
        return (model(inputs).argmax(1) == targets).float().mean().item()
