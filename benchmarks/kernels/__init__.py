"""Compile the kernels of a block for GPUs that are not there, and check what they need.

PyTorch's compiler (Inductor) schedules the parts of a block for a GPU and writes Triton code for it. Neither
that nor Triton's own compiler needs a GPU or a driver: tensors without data stand in for those of the GPU
(`torch._subclasses.fake_tensor`), and `pretend_gpu` answers the questions about the device. The result is the
machine code that the same release of PyTorch would run on that GPU, of which `cuobjdump` tells the
registers and the spills, and Triton the shared memory.

`make kernels` compiles all of it and compares it with `benchmarks/kernels/table.json`.
"""
