#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#define MMLOCAL_CAPABILITY avx2
#define MMLOCAL_VECTOR_BYTES 32
#include "kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
