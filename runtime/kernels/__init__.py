"""The CUDA kernels of the loops: their source, and how each operation of a device launches them."""
