// What the bindings and the kernels share. The kernels are compiled once per instruction set and
// see nothing of PyTorch: pointers and numbers only. T is float or double.
#pragma once

#include <cstdint>

namespace mmlocal {

// A channels-last map: the channels of a pixel lie side by side, the strides of samples, rows and
// pixels are free. Null where there is none.
template <class T>
struct Map {
  T* data = nullptr;
  int64_t b = 0, y = 0, x = 0;

  __attribute__((always_inline)) T* at(int64_t sample, int64_t row, int64_t col) const {
    return data + sample * b + row * y + col * x;
  }
};

// Shapes as in mmlocal/ops/elsa. Channels are padded per head to whole vectors.
template <class T>
struct Elsa {
  int64_t batch, height, width, heads, vectors;  // vectors per head
  int64_t kernel, dilation;
  bool softmax;
  Map<const T> value, attn, grad;  // attn: heads * kernel^2 per pixel
  const T* mul;                    // (taps, heads, vectors) or null, as is add
  const T* add;
  Map<T> weights;  // the softmax of attn, or attn itself
  Map<T> out, grad_value, grad_attn;
};

// Shapes as in mmlocal/ops/qna. A table is a query of a head: table = query * heads + head. Its
// tokens enter as E = exp(score) / 2^K, its taps as R = exp(rel_pos - max rel_pos).
template <class T>
struct Qna {
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t queries, heads, kernel, stride, padding;
  bool sum_queries, need_tables, need_value, need_scores;
  Map<const T> value, scores;
  Map<const T> grad;  // of one query; the next one is grad_query further on (0 for the sum)
  int64_t grad_query, out_query;
  const T* shift;   // (batch, padded tables): subtracted from the scores, 0 unless they are large
  const T* power;   // (batch, padded tables): K, a whole number
  const T* rel;     // (taps, padded tables): R
  const T* mix;     // (taps, vectors of channels, queries, vector): R times tap_weight
  const T* rel_pos;     // (tables, taps) or null, as they came
  const T* tap_weight;  // (tables, taps) or null
  Map<T> out;
  Map<T> inverse;  // (padded tables) per window: 1 / sum_t E R; 0: no tokens; -0: taken exactly
  Map<T> mean;     // (padded tables) per window: what the softmax subtracts, over the sum
  uint8_t* exact;  // (batch, out_height): whether a row has windows that are taken exactly
  Map<T> grad_value, grad_scores;
  // Sums of the tables' gradients, one block per part.
  T* sum_mix;          // (parts, taps, vectors of channels, queries, vector)
  T* sum_rel;          // (parts, taps, padded tables)
  T* sum_exact_mix;    // (parts, tables, taps)
  T* sum_exact_rel;    // (parts, tables, taps)
};

template <class T>
struct Kernels {
  int64_t lanes;  // of a vector

  // Rows [begin, end) of batch * height.
  void (*elsa_forward)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_weights)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_grad_value)(const Elsa<T>&, int64_t begin, int64_t end);
  void (*elsa_grad_attn)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  // Adds to (taps, heads, vectors); null where not needed.
  void (*elsa_grad_ghost)(const Elsa<T>&, T* mul, T* add, int64_t begin, int64_t end);
  int64_t (*elsa_scratch)(const Elsa<T>&);

  // Largest scores of rows [begin, end) of a sample, at least what is in peak (padded tables). NaN
  // if one is NaN or infinity; -inf is a score as any.
  void (*qna_peak)(const Qna<T>&, T* peak, int64_t sample, int64_t begin, int64_t end);
  // Tasks: tiles of windows, or of tokens.
  int64_t (*qna_window_tasks)(const Qna<T>&);
  int64_t (*qna_window_scratch)(const Qna<T>&);
  void (*qna_forward)(const Qna<T>&, T* scratch, int64_t begin, int64_t end);
  void (*qna_backward_windows)(
      const Qna<T>&, T* scratch, int64_t part, int64_t begin, int64_t end);
  int64_t (*qna_token_tasks)(const Qna<T>&);
  int64_t (*qna_token_scratch)(const Qna<T>&);
  void (*qna_backward_tokens)(const Qna<T>&, T* scratch, int64_t begin, int64_t end);
};

// One per instruction set; those of x86 exist on x86 only.
namespace generic {
template <class T>
const Kernels<T>& kernels();
}
namespace avx2 {
template <class T>
const Kernels<T>& kernels();
}
namespace avx512 {
template <class T>
const Kernels<T>& kernels();
}

}  // namespace mmlocal
