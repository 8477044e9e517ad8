"""In processes that have this folder on their PYTHONPATH: PyTorch without its compiler.

Optimizers import it, which takes a second, and ask nothing of it but to leave their methods as they are.
"""

import sys
import types

sys.modules["torch._dynamo"] = compiler = types.ModuleType("torch._dynamo")
compiler.disable, compiler.graph_break = lambda function, *_, **__: function, lambda *_, **__: None
