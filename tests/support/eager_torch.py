"""PyTorch for processes that only compute with it: without its compiler, which optimizers import, for a second."""

import sys
import types

import torch

# All that optimizers ask of it is to leave their methods as they are.
torch._dynamo = types.ModuleType("torch._dynamo")
torch._dynamo.disable, torch._dynamo.graph_break = lambda function, *_, **__: function, lambda *_, **__: None
sys.modules["torch._dynamo"] = torch._dynamo
