// For any CPU: SSE2 on x86, NEON on ARM.
#include "kernels.h"

#define MMLOCAL_CAPABILITY generic
#define MMLOCAL_VECTOR_BYTES 16
#include "kernels.inc"
