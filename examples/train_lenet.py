"""LeNet on handwritten digits with the library alone: no command line, the training loop in full."""

import numpy as np

from gpuconv import functional as F
from gpuconv import manual_seed, optim
from gpuconv.data import InputTransform, batch_indices, load_dataset
from gpuconv.models import LeNet5

manual_seed(0)
data = load_dataset("mnist-sample")  # 8,000 training and 2,000 test digits that come with gpuconv
model = LeNet5()
model.input_transform = InputTransform.fit(data.train_images)  # 28x28 -> 32x32, mean 0, standard deviation 1
optimizer = optim.Adam(model.parameters(), lr=2e-3)

for epoch in range(1):  # ten epochs give about 98 %
    for index in batch_indices(len(data.train_images), 64, seed=0, epoch=epoch):
        logits = model(model.input_transform(data.train_images[index]))
        loss = F.cross_entropy(logits, data.train_labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    accuracy = np.mean(model.predict(data.test_images).argmax(1) == data.test_labels)
    print(f"epoch {epoch + 1}: loss of the last batch {loss.item():.3f}, test accuracy {accuracy:.1%}")

assert accuracy > 0.94
