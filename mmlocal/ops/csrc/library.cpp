// The functions that mmlocal/ops/extension.py calls. It fills the structures of kernels.h and checks
// their shapes; here the work is cut into rows or tiles for the threads.
//
// Nothing here knows PyTorch or Python, so one library serves every version of both. All sums over
// threads are kept in parts whose number does not depend on the threads, so results don't either.

#include <cstdlib>

#include "kernels.h"

namespace mmlocal {
namespace {

// The OpenMP runtime that PyTorch has loaded, so that both share one pool of threads. Null where
// there is none: everything then runs on the calling thread.
struct OpenMP {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned);  // GOMP_parallel
  int (*in_parallel)();
  int (*thread_num)();
  int (*num_threads)();
} openmp;

int64_t capability = 0;  // 0: any CPU, 1: AVX2, 2: AVX-512

template <class T>
const Kernels<T>& chosen() {
#if defined(__x86_64__)
  if (capability == 2) return avx512::kernels<T>();
  if (capability == 1) return avx2::kernels<T>();
#endif
  return generic::kernels<T>();
}

// f(begin, end) for parts of count tasks, one for each of up to `threads` threads, with at least
// grain tasks in each.
template <class F>
void parallel_for(int64_t threads, int64_t count, int64_t grain, const F& f) {
  if (count <= 0) return;
  const int64_t most = (count + grain - 1) / grain;
  if (threads > most) threads = most;
  if (threads <= 1 || !openmp.parallel || openmp.in_parallel()) return f(int64_t(0), count);
  struct Region {
    const F& f;
    int64_t count;
  } region{f, count};
  openmp.parallel(
      [](void* data) {
        const Region& r = *static_cast<Region*>(data);
        const int64_t i = openmp.thread_num(), n = openmp.num_threads();
        const int64_t begin = i * r.count / n, end = (i + 1) * r.count / n;
        if (begin < end) r.f(begin, end);
      },
      &region, static_cast<unsigned>(threads), 0);
}

// f(part, begin, end) for equal parts of count tasks.
template <class F>
void in_parts(int64_t threads, int64_t count, int64_t parts, const F& f) {
  parallel_for(threads, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * count / parts, end = (part + 1) * count / parts;
      if (begin < end) f(part, begin, end);
    }
  });
}

// Aligned to whole vectors.
template <class T>
struct Memory {
  T* data;
  explicit Memory(int64_t count) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, count * sizeof(T) + 64)) abort();
    data = static_cast<T*>(memory);
  }
  Memory(const Memory&) = delete;
  ~Memory() { free(data); }
};

template <class T, class F>
void over_rows(const Elsa<T>& a, int64_t threads, const F& f) {
  const int64_t work = a.width * a.heads * a.kernel * a.kernel * (a.vectors + 1) + 1;
  const int64_t grain = 1 + 20000 / work;
  parallel_for(threads, a.batch * a.height, grain, [&](int64_t begin, int64_t end) {
    Memory<T> memory(chosen<T>().elsa_scratch(a));
    f(memory.data, begin, end);
  });
}

template <class T>
void elsa_forward(const Elsa<T>& a, int64_t threads) {
  over_rows(a, threads, [&](T* scratch, int64_t begin, int64_t end) {
    chosen<T>().elsa_forward(a, scratch, begin, end);
  });
}

// sums of the ghost heads: (parts, taps, channels), zero, or null.
template <class T>
void elsa_backward(const Elsa<T>& a, T* sum_mul, T* sum_add, int64_t parts, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  if (a.softmax) {
    over_rows(a, threads, [&](T* scratch, int64_t begin, int64_t end) {
      kernels.elsa_weights(a, scratch, begin, end);
    });
  }
  if (a.grad_value.data) {
    over_rows(a, threads, [&](T*, int64_t begin, int64_t end) {
      kernels.elsa_grad_value(a, begin, end);
    });
  }
  if (sum_mul || sum_add) {
    const int64_t size = a.kernel * a.kernel * a.heads * a.vectors * kernels.lanes;
    in_parts(threads, a.batch * a.height, parts, [&](int64_t part, int64_t begin, int64_t end) {
      kernels.elsa_grad_ghost(a, sum_mul ? sum_mul + part * size : nullptr,
                              sum_add ? sum_add + part * size : nullptr, begin, end);
    });
  }
  if (a.grad_attn.data) {  // last: it may overwrite the weights
    over_rows(a, threads, [&](T* scratch, int64_t begin, int64_t end) {
      kernels.elsa_grad_attn(a, scratch, begin, end);
    });
  }
}

// peak: (batch, parts, padded tables), -inf: the largest score of each table in each part of the
// rows. Of a, only the scores and their sizes are set.
template <class T>
void qna_peak(const Qna<T>& a, T* peak, int64_t parts, int64_t threads) {
  const int64_t n = chosen<T>().lanes, padded = (a.queries * a.heads + n - 1) / n * n;
  in_parts(threads, a.batch * parts, a.batch * parts, [&](int64_t part, int64_t, int64_t) {
    const int64_t sample = part / parts, i = part % parts;
    chosen<T>().qna_peak(a, peak + part * padded, sample, i * a.height / parts,
                         (i + 1) * a.height / parts);
  });
}

template <class T>
void qna_forward(const Qna<T>& a, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  parallel_for(threads, kernels.qna_window_tasks(a), 1, [&](int64_t begin, int64_t end) {
    Memory<T> memory(kernels.qna_window_scratch(a));
    kernels.qna_forward(a, memory.data, begin, end);
  });
}

// parts: of the sums of the tables' gradients, if there are any.
template <class T>
void qna_backward(const Qna<T>& a, int64_t parts, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  const int64_t tasks = kernels.qna_window_tasks(a);
  in_parts(threads, tasks, a.need_tables ? parts : tasks,
           [&](int64_t part, int64_t begin, int64_t end) {
             Memory<T> memory(kernels.qna_window_scratch(a));
             kernels.qna_backward_windows(a, memory.data, part, begin, end);
           });
  if (!a.need_value && !a.need_scores) return;
  parallel_for(threads, kernels.qna_token_tasks(a), 1, [&](int64_t begin, int64_t end) {
    Memory<T> memory(kernels.qna_token_scratch(a));
    kernels.qna_backward_tokens(a, memory.data, begin, end);
  });
}

}  // namespace
}  // namespace mmlocal

#define MMLOCAL_TEXT_OF(x) #x
#define MMLOCAL_TEXT(x) MMLOCAL_TEXT_OF(x)
#define MMLOCAL_EXPORT extern "C" __attribute__((visibility("default")))

using mmlocal::Elsa;
using mmlocal::Qna;

// Functions that end in _float and _double take the structures and numbers of that type.

// A digest of the sources, to compare with the one of the sources at hand.
MMLOCAL_EXPORT const char* mmlocal_digest() { return MMLOCAL_TEXT(MMLOCAL_DIGEST); }

// Sizes of the structures, to compare with their declarations in Python.
MMLOCAL_EXPORT int64_t mmlocal_size_of_elsa() { return sizeof(Elsa<float>); }
MMLOCAL_EXPORT int64_t mmlocal_size_of_qna() { return sizeof(Qna<float>); }

// Called once. functions: those of OpenMP, in its order, or null.
MMLOCAL_EXPORT void mmlocal_init(int64_t capability, const mmlocal::OpenMP* functions) {
  mmlocal::capability = capability;
  if (functions) mmlocal::openmp = *functions;
}

MMLOCAL_EXPORT int64_t mmlocal_lanes_float() { return mmlocal::chosen<float>().lanes; }
MMLOCAL_EXPORT int64_t mmlocal_lanes_double() { return mmlocal::chosen<double>().lanes; }

// How many of `threads` threads share a loop.
MMLOCAL_EXPORT int64_t mmlocal_threads(int64_t threads) {
  int64_t count = 0;
  mmlocal::parallel_for(threads, threads, 1, [&](int64_t, int64_t) {
    __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
  });
  return count;
}

#define MMLOCAL_FUNCTIONS(T)                                                              \
  MMLOCAL_EXPORT void mmlocal_elsa_forward_##T(const Elsa<T>* a, int64_t threads) {        \
    mmlocal::elsa_forward(*a, threads);                                                   \
  }                                                                                       \
  MMLOCAL_EXPORT void mmlocal_elsa_backward_##T(const Elsa<T>* a, T* sum_mul, T* sum_add,  \
                                                int64_t parts, int64_t threads) {         \
    mmlocal::elsa_backward(*a, sum_mul, sum_add, parts, threads);                         \
  }                                                                                       \
  MMLOCAL_EXPORT void mmlocal_qna_peak_##T(const Qna<T>* a, T* peak, int64_t parts,        \
                                           int64_t threads) {                             \
    mmlocal::qna_peak(*a, peak, parts, threads);                                          \
  }                                                                                       \
  MMLOCAL_EXPORT void mmlocal_qna_forward_##T(const Qna<T>* a, int64_t threads) {          \
    mmlocal::qna_forward(*a, threads);                                                    \
  }                                                                                       \
  MMLOCAL_EXPORT void mmlocal_qna_backward_##T(const Qna<T>* a, int64_t parts,             \
                                               int64_t threads) {                         \
    mmlocal::qna_backward(*a, parts, threads);                                            \
  }
MMLOCAL_FUNCTIONS(float)
MMLOCAL_FUNCTIONS(double)
