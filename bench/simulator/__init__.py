"""CUDA kernels run without a device: their machine code, on a simulated H200."""
