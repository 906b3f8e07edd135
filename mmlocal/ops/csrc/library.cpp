// The functions that mmlocal/ops/extension.py calls. The Python side fills the structures of
// kernels.h and checks the shapes. This file cuts the work into rows or tiles for the threads.
//
// Nothing here knows PyTorch or Python, so one library works with every version of both. Sums over
// threads are kept in a fixed number of parts, so results do not depend on the number of threads.

#include <cstdlib>

#include "kernels.h"

namespace mmlocal {
namespace {

// The OpenMP runtime that PyTorch has loaded, so that both share one pool of threads. The pointers
// are null where there is no such runtime. Everything then runs on the calling thread.
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

// Calls f(begin, end) on up to `threads` threads, which share count tasks. Each thread gets at
// least `grain` tasks.
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

// Calls f(part, begin, end) for each of `parts` equal parts of count tasks.
template <class F>
void in_parts(int64_t threads, int64_t count, int64_t parts, const F& f) {
  parallel_for(threads, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * count / parts, end = (part + 1) * count / parts;
      if (begin < end) f(part, begin, end);
    }
  });
}

// Memory that is aligned to whole vectors.
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
  const int64_t work = a.width * a.heads * a.kernel * a.kernel * (a.head_dims / 16 + 1) + 1;
  const int64_t grain = 1 + 20000 / work;
  parallel_for(threads, a.batch * a.height, grain, [&](int64_t begin, int64_t end) {
    Memory<T> memory(chosen<T>().elsa_scratch(a));
    f(a, memory.data, begin, end);
  });
}

template <class T>
void elsa_forward(const Elsa<T>& a, int64_t threads) {
  over_rows(a, threads, chosen<T>().elsa_forward);
}

template <class T>
void elsa_backward(const Elsa<T>& a, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  if (a.softmax) over_rows(a, threads, kernels.elsa_weights);
  if (a.grad_value.data) over_rows(a, threads, kernels.elsa_grad_value);
  if (a.sum_mul || a.sum_add) {
    in_parts(threads, a.batch * a.height, a.parts, [&](int64_t part, int64_t begin, int64_t end) {
      Memory<T> memory(kernels.elsa_scratch(a));
      kernels.elsa_grad_ghost(a, memory.data, part, begin, end);
    });
  }
  // This comes last, because it may overwrite the weights.
  if (a.grad_attn.data) over_rows(a, threads, kernels.elsa_grad_attn);
}

// Places tables and sums, whose numbers mmlocal/ops/qna/cpp.py counts.
template <class T>
QnaCall<T> placed(const Qna<T>& given) {
  QnaCall<T> a(given);
  const int64_t n = chosen<T>().lanes, taps = a.kernel * a.kernel;
  const int64_t padded = (a.queries * a.heads + n - 1) / n * n;
  a.peak = a.tables;
  a.shift = a.peak + a.batch * a.parts * padded;
  a.power = a.shift + a.batch * padded;
  a.rel = a.power + a.batch * padded;
  a.mix = a.rel + taps * padded;
  a.sum_rel = a.sums;
  a.sum_exact_rel = a.sum_rel + taps * padded;
  a.sum_exact_mix = a.sum_exact_rel + taps * padded;
  a.sum_mix = a.sum_exact_mix + taps * padded;
  a.sums_of_part = taps * (3 * padded + (a.channels + n - 1) / n * n * a.queries);
  return a;
}

// Into how many shares the work on the tables is cut.
constexpr int64_t kShares = 128;

// Makes the tables. Returns whether all numbers in them are below infinity.
template <class T>
bool make_tables(const QnaCall<T>& a, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  const int64_t tables = a.queries * a.heads, parts = a.batch * a.parts;
  const int64_t tasks = kernels.qna_table_tasks(a);
  bool refused = false;
  // A share has tasks of both kinds.
  const int64_t work = a.batch * a.height * a.width * tables / 8 + tables * a.kernel * a.kernel;
  parallel_for(threads, kShares, 1 + kShares * 5000 / (work + 1), [&](int64_t begin, int64_t end) {
    const auto of = [&](int64_t share, int64_t count) { return share * count / kShares; };
    for (int64_t part = of(begin, parts); part < of(end, parts); ++part) kernels.qna_peak(a, part);
    Memory<T> memory(kernels.qna_table_scratch(a));
    if (!kernels.qna_tables(a, memory.data, of(begin, tasks), of(end, tasks))) {
      __atomic_store_n(&refused, true, __ATOMIC_RELAXED);
    }
  });
  return kernels.qna_scales(a) && !refused;
}

template <class T>
void qna_forward(Qna<T>& given, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  const QnaCall<T> a = placed(given);
  given.refused = !make_tables(a, threads);
  if (given.refused) return;
  parallel_for(threads, kernels.qna_window_tasks(a), 1, [&](int64_t begin, int64_t end) {
    Memory<T> memory(kernels.qna_window_scratch(a));
    kernels.qna_forward(a, memory.data, begin, end);
  });
}

template <class T>
void qna_backward(Qna<T>& given, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  QnaCall<T> a = placed(given);
  given.refused = !make_tables(a, threads);
  if (given.refused) return;
  const int64_t tasks = kernels.qna_window_tasks(a), taps = a.kernel * a.kernel;
  if (a.parts > tasks || !a.sums) a.parts = tasks;  // each part then has a task
  in_parts(threads, tasks, a.parts, [&](int64_t part, int64_t begin, int64_t end) {
    Memory<T> memory(kernels.qna_window_scratch(a));
    if (!kernels.qna_backward_windows(a, memory.data, part, begin, end)) {
      __atomic_store_n(&given.refused, true, __ATOMIC_RELAXED);
    }
  });
  if (given.refused) return;
  if (a.sums) {
    const int64_t grain = 1 + 100000 / (a.parts * a.queries * a.channels + 1);
    parallel_for(threads, taps, grain, [&](int64_t begin, int64_t end) {
      Memory<T> memory(kernels.qna_table_scratch(a));
      kernels.qna_grad_tables(a, memory.data, begin, end);
    });
  }
  if (!a.grad_value.data && !a.grad_scores.data) return;
  parallel_for(threads, kernels.qna_token_tasks(a), 1, [&](int64_t begin, int64_t end) {
    Memory<T> memory(kernels.qna_token_scratch(a));
    kernels.qna_backward_tokens(a, memory.data, begin, end);
  });
}

template <class T, class F>
void over_windows(const Outlook<T>& a, int64_t threads, const F& f) {
  // Windows on the border of two parts count twice, so a part has several rows of windows.
  parallel_for(threads, a.batch * a.height, 2 * a.kernel, [&](int64_t begin, int64_t end) {
    Memory<T> memory(chosen<T>().outlook_scratch(a));
    f(a, memory.data, begin, end);
  });
}

template <class T>
void outlook_forward(const Outlook<T>& a, int64_t threads) {
  over_windows(a, threads, chosen<T>().outlook_forward);
}

template <class T>
void outlook_backward(const Outlook<T>& a, int64_t threads) {
  over_windows(a, threads, chosen<T>().outlook_backward);
}

template <class T, class F>
void over_tasks(const Deformable<T>& a, int64_t threads, int64_t tasks, const F& f) {
  parallel_for(threads, tasks, 1, [&](int64_t begin, int64_t end) {
    Memory<T> memory(chosen<T>().deformable_scratch(a));
    f(a, memory.data, begin, end);
  });
}

template <class T>
void deformable_forward(const Deformable<T>& a, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  over_tasks(a, threads, kernels.deformable_tasks(a), kernels.deformable_forward);
}

template <class T>
void deformable_backward(const Deformable<T>& a, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  if (a.grad_positions || a.grad_weights) {
    over_tasks(a, threads, kernels.deformable_tasks(a), kernels.deformable_grad_samples);
  }
  if (a.grad_value) over_tasks(a, threads, a.heads * a.maps, kernels.deformable_grad_value);
  if (a.grad_points) {
    parallel_for(threads, a.queries, 256, [&](int64_t begin, int64_t end) {
      kernels.deformable_grad_points(a, begin, end);
    });
  }
}

template <class T>
void over_vectors(GroupedConvolution<T>& a, int64_t threads,
                  bool (*function)(const GroupedConvolution<T>&, int64_t, int64_t)) {
  parallel_for(threads, chosen<T>().convolution_vectors(a), 4, [&](int64_t begin, int64_t end) {
    if (!function(a, begin, end)) __atomic_store_n(&a.refused, true, __ATOMIC_RELAXED);
  });
}

template <class T>
void convolution_forward(GroupedConvolution<T>& a, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  over_vectors(a, threads, kernels.convolution_tables);
  if (a.refused) return;
  const int64_t tasks = kernels.convolution_tasks(a) * kernels.convolution_vectors(a);
  parallel_for(threads, tasks, 1, [&](int64_t begin, int64_t end) {
    Memory<T> memory(kernels.convolution_scratch(a));
    kernels.convolution_forward(a, memory.data, begin, end);
  });
}

template <class T>
void convolution_grad_weight(GroupedConvolution<T>& a, int64_t threads) {
  const Kernels<T>& kernels = chosen<T>();
  const int64_t items = a.parts * kernels.convolution_vectors(a);
  parallel_for(threads, items, 1, [&](int64_t begin, int64_t end) {
    Memory<T> memory(kernels.convolution_scratch(a));
    kernels.convolution_grad_weight(a, memory.data, begin, end);
  });
  over_vectors(a, threads, kernels.convolution_add_parts);
}

}  // namespace
}  // namespace mmlocal

#define MMLOCAL_TEXT_OF(x) #x
#define MMLOCAL_TEXT(x) MMLOCAL_TEXT_OF(x)
#define MMLOCAL_EXPORT extern "C" __attribute__((visibility("default")))

// A digest of the sources. Python compares it with the digest of the sources at hand.
MMLOCAL_EXPORT const char* mmlocal_digest() { return MMLOCAL_TEXT(MMLOCAL_DIGEST); }

// Python calls this once. `functions` is null without an OpenMP runtime.
MMLOCAL_EXPORT void mmlocal_init(int64_t capability, const mmlocal::OpenMP* functions) {
  mmlocal::capability = capability;
  if (functions) mmlocal::openmp = *functions;
}

MMLOCAL_EXPORT int64_t mmlocal_lanes_float() { return mmlocal::chosen<float>().lanes; }
MMLOCAL_EXPORT int64_t mmlocal_lanes_double() { return mmlocal::chosen<double>().lanes; }

// How many threads share a loop if `threads` are asked for.
MMLOCAL_EXPORT int64_t mmlocal_threads(int64_t threads) {
  int64_t count = 0;
  mmlocal::parallel_for(threads, threads, 1,
                        [&](int64_t, int64_t) { __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED); });
  return count;
}

// The functions of an op for one type of numbers, and the sizes of the structures that they take.
// Python compares the sizes with its own declarations.
#define MMLOCAL_FUNCTION(NAME, STRUCTURE, T)                                            \
  MMLOCAL_EXPORT void mmlocal_##NAME##_##T(mmlocal::STRUCTURE<T>* a, int64_t threads) { \
    mmlocal::NAME(*a, threads);                                                         \
  }
#define MMLOCAL_FUNCTIONS(NAME, STRUCTURE)  \
  MMLOCAL_FUNCTION(NAME, STRUCTURE, float)  \
  MMLOCAL_FUNCTION(NAME, STRUCTURE, double) \
  MMLOCAL_EXPORT int64_t mmlocal_size_of_##NAME() { return sizeof(mmlocal::STRUCTURE<float>); }

MMLOCAL_FUNCTIONS(elsa_forward, Elsa)
MMLOCAL_FUNCTIONS(elsa_backward, Elsa)
MMLOCAL_FUNCTIONS(qna_forward, Qna)
MMLOCAL_FUNCTIONS(qna_backward, Qna)
MMLOCAL_FUNCTIONS(outlook_forward, Outlook)
MMLOCAL_FUNCTIONS(outlook_backward, Outlook)
MMLOCAL_FUNCTIONS(deformable_forward, Deformable)
MMLOCAL_FUNCTIONS(deformable_backward, Deformable)
MMLOCAL_FUNCTIONS(convolution_forward, GroupedConvolution)
MMLOCAL_FUNCTIONS(convolution_grad_weight, GroupedConvolution)
