"""``python -m tools.kernel_report``: what the GPU kernels use and could reach at most. Needs LLVM's tools."""
