// Python's view of the kernels: tensors in, checked, cut into rows or tiles for the threads.
// The Python modules beside this folder prepare layouts and tables, and allocate the results.
//
// Maps come as (B, H, W, channels) with the channels innermost. All sums over threads are kept in
// parts whose number does not depend on the threads, so results don't either.

#include <ATen/Parallel.h>
#include <ATen/Version.h>
#include <c10/core/CPUAllocator.h>
#include <torch/csrc/utils/pybind.h>

#include <atomic>

#include "kernels.h"

namespace mmlocal {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

template <class T>
const Kernels<T>& chosen() {
#if defined(__x86_64__)
  // As PyTorch chooses its own; ATEN_CPU_CAPABILITY changes both.
  static const std::string capability = at::get_cpu_capability();
  if (capability.rfind("AVX512", 0) == 0) return avx512::kernels<T>();
  if (capability.rfind("AVX2", 0) == 0) return avx2::kernels<T>();
#endif
  return generic::kernels<T>();
}

template <class T>
T* pointer(const Tensor& x, const char* name) {
  TORCH_CHECK(x.device().is_cpu(), name, " must be on the CPU, got ", x.device());
  TORCH_CHECK(x.scalar_type() == c10::CppTypeToScalarType<std::remove_const_t<T>>::value, name,
              " has dtype ", x.scalar_type());
  return static_cast<T*>(x.data_ptr());
}

template <class T>
Map<T> map(const Tensor& x, const char* name, at::IntArrayRef shape) {
  TORCH_CHECK(x.sizes() == shape, name, " has shape ", x.sizes(), ", expected ", shape);
  TORCH_CHECK(x.stride(3) == 1 || x.size(3) == 1 || x.numel() == 0, name,
              " must be channels-last");
  return {pointer<T>(x, name), x.stride(0), x.stride(1), x.stride(2)};
}

template <class T>
Map<T> map(const Optional& x, const char* name, at::IntArrayRef shape) {
  return x ? map<T>(*x, name, shape) : Map<T>{};
}

template <class T>
T* table(const Tensor& x, const char* name, int64_t size) {
  TORCH_CHECK(x.is_contiguous() && x.numel() >= size, name, " must be contiguous, of ", size,
              " numbers, got ", x.sizes());
  return pointer<T>(x, name);
}

template <class T>
T* table(const Optional& x, const char* name, int64_t size) {
  return x ? table<T>(*x, name, size) : nullptr;
}

template <class T>
struct Memory {
  at::DataPtr owner;
  T* data;
  explicit Memory(int64_t count)
      : owner(c10::GetCPUAllocator()->allocate(count * sizeof(T))),
        data(static_cast<T*>(owner.get())) {}
};

// f(part, begin, end) for equal parts of count tasks.
template <class F>
void in_parts(int64_t count, int64_t parts, const F& f) {
  at::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      const int64_t begin = part * count / parts, end = (part + 1) * count / parts;
      if (begin < end) f(part, begin, end);
    }
  });
}

template <class F>
void with_type(const Tensor& x, const F& f) {
  if (x.scalar_type() == at::kDouble) {
    f(double());
  } else {
    f(float());
  }
}

int64_t lanes(bool is_double) {
  return is_double ? chosen<double>().lanes : chosen<float>().lanes;
}

// How many threads share a loop; 1, whatever PyTorch says, where the compiler knew no OpenMP.
int64_t threads() {
  std::atomic<int64_t> count{0};
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t, int64_t) { ++count; });
  return count;
}

template <class T>
Elsa<T> elsa(const Tensor& value, const Tensor& attn, const Optional& mul, const Optional& add,
             int64_t kernel, int64_t dilation, bool softmax) {
  TORCH_CHECK(value.dim() == 4 && attn.dim() == 4, "value and attn must be maps");
  Elsa<T> a{};
  a.batch = value.size(0);
  a.height = value.size(1);
  a.width = value.size(2);
  a.heads = attn.size(3) / (kernel * kernel);
  a.vectors = value.size(3) / (a.heads * chosen<T>().lanes);
  TORCH_CHECK(a.vectors * a.heads * chosen<T>().lanes == value.size(3),
              "the channels of a head must fill whole vectors");
  a.kernel = kernel;
  a.dilation = dilation;
  a.softmax = softmax;
  a.value = map<const T>(value, "value", value.sizes());
  a.attn = map<const T>(attn, "attn", {a.batch, a.height, a.width, a.heads * kernel * kernel});
  a.mul = table<const T>(mul, "mul", kernel * kernel * value.size(3));
  a.add = table<const T>(add, "add", kernel * kernel * value.size(3));
  return a;
}

template <class T>
void over_rows(const Elsa<T>& a,
               const std::function<void(T* scratch, int64_t begin, int64_t end)>& f) {
  const int64_t work = a.width * a.heads * a.kernel * a.kernel * (a.vectors + 1) + 1;
  at::parallel_for(0, a.batch * a.height, 1 + 20000 / work, [&](int64_t begin, int64_t end) {
    Memory<T> memory(chosen<T>().elsa_scratch(a));
    f(memory.data, begin, end);
  });
}

void elsa_forward(const Tensor& value, const Tensor& attn, const Optional& mul, const Optional& add,
                  int64_t kernel, int64_t dilation, bool softmax, const Tensor& out) {
  with_type(value, [&](auto type) {
    using T = decltype(type);
    auto a = elsa<T>(value, attn, mul, add, kernel, dilation, softmax);
    a.out = map<T>(out, "out", value.sizes());
    over_rows<T>(a, [&](T* scratch, int64_t begin, int64_t end) {
      chosen<T>().elsa_forward(a, scratch, begin, end);
    });
  });
}

// weights: room for the softmax of attn, which may be attn's own; attn itself if there is none to
// take. grad_attn may be the room of the softmax. What is not needed is None; sums of the ghost
// heads: (parts, taps, channels), zero.
void elsa_backward(const Tensor& grad, const Tensor& value, const Tensor& attn, const Optional& mul,
                   const Optional& add, int64_t kernel, int64_t dilation, bool softmax,
                   const Tensor& weights, const Optional& grad_value, const Optional& grad_attn,
                   const Optional& sum_mul, const Optional& sum_add) {
  with_type(value, [&](auto type) {
    using T = decltype(type);
    const auto& kernels = chosen<T>();
    auto a = elsa<T>(value, attn, mul, add, kernel, dilation, softmax);
    a.grad = map<const T>(grad, "grad", value.sizes());
    a.weights = map<T>(weights, "weights", attn.sizes());
    a.grad_value = map<T>(grad_value, "grad_value", value.sizes());
    a.grad_attn = map<T>(grad_attn, "grad_attn", attn.sizes());
    if (softmax) {
      over_rows<T>(a, [&](T* scratch, int64_t begin, int64_t end) {
        kernels.elsa_weights(a, scratch, begin, end);
      });
    }
    if (grad_value) {
      over_rows<T>(a, [&](T*, int64_t begin, int64_t end) {
        kernels.elsa_grad_value(a, begin, end);
      });
    }
    if (sum_mul || sum_add) {
      const int64_t parts = (sum_mul ? sum_mul : sum_add)->size(0);
      const int64_t size = kernel * kernel * value.size(3);
      T* sums_mul = table<T>(sum_mul, "sum_mul", parts * size);
      T* sums_add = table<T>(sum_add, "sum_add", parts * size);
      in_parts(a.batch * a.height, parts, [&](int64_t part, int64_t begin, int64_t end) {
        kernels.elsa_grad_ghost(a, sums_mul ? sums_mul + part * size : nullptr,
                                sums_add ? sums_add + part * size : nullptr, begin, end);
      });
    }
    if (grad_attn) {  // last: it may overwrite the weights
      over_rows<T>(a, [&](T* scratch, int64_t begin, int64_t end) {
        kernels.elsa_grad_attn(a, scratch, begin, end);
      });
    }
  });
}

// (B, parts, padded tables), -inf: the largest score of each table in each part of the rows.
void qna_peak(const Tensor& scores, const Tensor& peak) {
  with_type(scores, [&](auto type) {
    using T = decltype(type);
    TORCH_CHECK(scores.dim() == 4 && peak.dim() == 3, "scores must be a map, peak have 3 dimensions");
    Qna<T> a{};
    a.batch = scores.size(0);
    a.height = scores.size(1);
    a.width = scores.size(2);
    a.queries = 1;
    a.heads = scores.size(3);
    a.scores = map<const T>(scores, "scores", scores.sizes());
    const int64_t n = chosen<T>().lanes, padded = (a.heads + n - 1) / n * n, parts = peak.size(1);
    T* out = table<T>(peak, "peak", a.batch * parts * padded);
    in_parts(a.batch * parts, a.batch * parts, [&](int64_t part, int64_t, int64_t) {
      const int64_t sample = part / parts, i = part % parts;
      chosen<T>().qna_peak(a, out + part * padded, sample, i * a.height / parts,
                           (i + 1) * a.height / parts);
    });
  });
}

// In the order of Python's calls.
struct QnaInputs {
  Tensor value, scores, shift, power, rel, mix;
  Optional rel_pos, tap_weight;
  int64_t queries, kernel, stride, padding, out_height, out_width;
};

template <class T>
Qna<T> qna(const QnaInputs& x) {
  TORCH_CHECK(x.value.dim() == 4 && x.scores.dim() == 4, "value and scores must be maps");
  Qna<T> a{};
  a.batch = x.value.size(0);
  a.height = x.value.size(1);
  a.width = x.value.size(2);
  a.channels = x.value.size(3);
  a.out_height = x.out_height;
  a.out_width = x.out_width;
  a.queries = x.queries;
  a.heads = x.scores.size(3) / x.queries;
  a.kernel = x.kernel;
  a.stride = x.stride;
  a.padding = x.padding;
  a.value = map<const T>(x.value, "value", x.value.sizes());
  a.scores = map<const T>(x.scores, "scores",
                          {a.batch, a.height, a.width, a.queries * a.heads});
  const int64_t n = chosen<T>().lanes, taps = a.kernel * a.kernel;
  const int64_t tables = a.queries * a.heads, padded = (tables + n - 1) / n * n;
  const int64_t mixed = (a.channels + n - 1) / n * n * a.queries;
  a.shift = table<const T>(x.shift, "shift", a.batch * padded);
  a.power = table<const T>(x.power, "power", a.batch * padded);
  a.rel = table<const T>(x.rel, "rel", taps * padded);
  a.mix = table<const T>(x.mix, "mix", taps * mixed);
  a.rel_pos = table<const T>(x.rel_pos, "rel_pos", tables * taps);
  a.tap_weight = table<const T>(x.tap_weight, "tap_weight", tables * taps);
  return a;
}

// out, and the gradient that comes in: (B, queries or 1, H, W, C)
template <class T>
Map<T> output_map(const Qna<std::remove_const_t<T>>& a, const Tensor& x, const char* name) {
  TORCH_CHECK(x.dim() == 5, name, " must have 5 dimensions");
  const int64_t queries = a.sum_queries ? 1 : a.queries;
  TORCH_CHECK(x.size(1) == queries, name, " is of ", x.size(1), " queries, expected ", queries);
  return map<T>(x.select(1, 0), name, {a.batch, a.out_height, a.out_width, a.channels});
}

void qna_forward(const QnaInputs& inputs, bool sum_queries, const Tensor& out) {
  with_type(inputs.value, [&](auto type) {
    using T = decltype(type);
    const auto& kernels = chosen<T>();
    auto a = qna<T>(inputs);
    a.sum_queries = sum_queries;
    a.out = output_map<T>(a, out, "out");
    a.out_query = sum_queries ? 0 : out.stride(1);
    at::parallel_for(0, kernels.qna_window_tasks(a), 1, [&](int64_t begin, int64_t end) {
      Memory<T> memory(kernels.qna_window_scratch(a));
      kernels.qna_forward(a, memory.data, begin, end);
    });
  });
}

// inverse, mean: (B, H_out, W_out, padded tables), the first with room for a vector behind it.
// exact: (B, H_out) bytes, zero. sums: see Qna, zero; None if no table needs a gradient.
void qna_backward(const Tensor& grad, const QnaInputs& inputs, bool sum_queries,
                  const Tensor& inverse, const Tensor& mean, const Tensor& exact,
                  const std::optional<std::vector<Tensor>>& sums, const Optional& grad_value,
                  const Optional& grad_scores) {
  with_type(inputs.value, [&](auto type) {
    using T = decltype(type);
    const auto& kernels = chosen<T>();
    auto a = qna<T>(inputs);
    a.sum_queries = sum_queries;
    a.grad = output_map<const T>(a, grad, "grad");
    a.grad_query = sum_queries ? 0 : grad.stride(1);
    const int64_t n = kernels.lanes, taps = a.kernel * a.kernel;
    const int64_t tables = a.queries * a.heads, padded = (tables + n - 1) / n * n;
    const int64_t mixed = (a.channels + n - 1) / n * n * a.queries;
    const int64_t windows = a.batch * a.out_height * a.out_width;
    const auto over_windows = [&](const Tensor& x, const char* name, int64_t extra) {
      return Map<T>{table<T>(x, name, windows * padded + extra), a.out_height * a.out_width * padded,
                    a.out_width * padded, padded};
    };
    a.inverse = over_windows(inverse, "inverse", n);
    a.mean = over_windows(mean, "mean", 0);
    a.exact = table<uint8_t>(exact, "exact", a.batch * a.out_height);
    a.grad_value = map<T>(grad_value, "grad_value", inputs.value.sizes());
    a.grad_scores = map<T>(grad_scores, "grad_scores", inputs.scores.sizes());
    a.need_tables = sums.has_value();
    a.need_value = grad_value.has_value();
    a.need_scores = grad_scores.has_value();

    const int64_t tasks = kernels.qna_window_tasks(a);
    int64_t parts = tasks;
    if (sums) {
      parts = sums->at(0).size(0);
      a.sum_mix = table<T>(sums->at(0), "sum_mix", parts * taps * mixed);
      a.sum_rel = table<T>(sums->at(1), "sum_rel", parts * taps * padded);
      a.sum_exact_mix = table<T>(sums->at(2), "sum_exact_mix", parts * tables * taps);
      a.sum_exact_rel = table<T>(sums->at(3), "sum_exact_rel", parts * tables * taps);
    }
    in_parts(tasks, parts, [&](int64_t part, int64_t begin, int64_t end) {
      Memory<T> memory(kernels.qna_window_scratch(a));
      kernels.qna_backward_windows(a, memory.data, part, begin, end);
    });
    if (!a.need_value && !a.need_scores) return;
    at::parallel_for(0, kernels.qna_token_tasks(a), 1, [&](int64_t begin, int64_t end) {
      Memory<T> memory(kernels.qna_token_scratch(a));
      kernels.qna_backward_tokens(a, memory.data, begin, end);
    });
  });
}

}  // namespace
}  // namespace mmlocal

// What setup.py found: TORCH_VERSION of the headers lacks the suffix of a pre-release.
#define MMLOCAL_TEXT_OF(x) #x
#define MMLOCAL_TEXT(x) MMLOCAL_TEXT_OF(x)

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  namespace py = pybind11;
  using namespace mmlocal;
  const auto no_gil = py::call_guard<py::gil_scoped_release>();
  m.attr("torch_version") = MMLOCAL_TEXT(MMLOCAL_TORCH_VERSION);
  m.def("lanes", lanes);
  m.def("threads", threads, no_gil);
  m.def("elsa_forward", elsa_forward, no_gil);
  m.def("elsa_backward", elsa_backward, no_gil);
  py::class_<QnaInputs>(m, "QnaInputs")
      .def(py::init([](Tensor value, Tensor scores, Tensor shift, Tensor power, Tensor rel,
                       Tensor mix, Optional rel_pos, Optional tap_weight, int64_t queries,
                       int64_t kernel, int64_t stride, int64_t padding, int64_t out_height,
                       int64_t out_width) {
        return QnaInputs{value,   scores, shift,  power,   rel,        mix,      rel_pos,
                         tap_weight, queries, kernel, stride, padding, out_height, out_width};
      }));
  m.def("qna_peak", qna_peak, no_gil);
  m.def("qna_forward", qna_forward, no_gil);
  m.def("qna_backward", qna_backward, no_gil);
}
