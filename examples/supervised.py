"""The training loop that several programs of this folder share.

It imports no library: it works with the model, loss and optimizer of gpuconv and with those of PyTorch.
"""


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
