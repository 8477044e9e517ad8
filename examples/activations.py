"""The functions between the layers: ReLU, tanh, sigmoid; softmax at the end; dropout while training."""

import numpy as np

from gpuconv import functional as F
from gpuconv import manual_seed, nn

x = np.array([-2, -0.5, 0, 0.5, 2], np.float32)
for function in (F.relu, F.tanh, F.sigmoid):
    print(f"{function.__name__:7}", function(x).round(3))
assert F.relu(x).tolist() == [0, 0, 0, 0.5, 2]
assert F.sigmoid(x)[2] == 0.5
np.testing.assert_allclose(F.tanh(x), 2 * F.sigmoid(2 * x) - 1, atol=1e-6)  # the same curve, stretched

# Softmax turns any scores into probabilities: positive, and together 1.
scores = np.array([[2, 1, -1000]], np.float32)
probabilities = F.softmax(scores, 1)
print("softmax", probabilities[0].round(3), "of", scores[0])
np.testing.assert_allclose(probabilities[0, :2], [0.731, 0.269], atol=5e-4)
np.testing.assert_allclose(probabilities.sum(), 1, rtol=1e-6)

# Dropout, between fully connected layers: while training it sets each value to 0 with probability p and scales up the
# others, so that the mean stays. Afterwards it does nothing.
manual_seed(0)
layer = nn.Dropout(p=0.5)
ones = np.ones((1, 10_000), np.float32)
dropped = layer(ones)
print("dropout", f"{np.mean(dropped == 0):.1%} dropped, the others are {dropped.max():.0f}, mean {dropped.mean():.2f}")
assert set(np.unique(dropped)) == {0, 2}
assert abs(dropped.mean() - 1) < 0.05
np.testing.assert_array_equal(layer.eval()(ones), ones)
