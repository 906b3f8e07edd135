"""One run that checks and measures the Triton kernels on a GPU: ``benchmarks/gpu_check.sh``."""
