"""``python -m tools.bench``: operators beside other libraries', and the bounds that the CPU kernels are held to."""
