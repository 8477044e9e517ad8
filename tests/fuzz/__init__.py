"""A fuzzer of whole programs, ``python -m tests.fuzz --programs N --seed S``.

Random programs (``programs``) in names that gpuconv and PyTorch share (``dialect``) run on both CPU backends and, the
same program, in PyTorch, statement by statement (``running``): values, gradients, shapes and element types must agree.
They run in processes whose arrays lie between guard pages (``guard``), so that a byte read or written beyond an array
is a crash. The parent (``parent``) notes which program it was, and makes a short script of it (``reducing``).
"""
