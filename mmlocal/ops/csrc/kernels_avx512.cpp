#include "kernels.h"

#if defined(__x86_64__)
#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")
#endif
#define MMLOCAL_CAPABILITY avx512
#define MMLOCAL_VECTOR_BYTES 64
#include "kernels.inc"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
