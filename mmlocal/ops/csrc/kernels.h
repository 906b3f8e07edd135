// What the library and the kernels share. The kernels are compiled once per instruction set and
// see nothing of PyTorch: pointers and numbers only. T is float or double.
//
// "Padded" counts are rounded up to whole vectors. mmlocal/ops/extension.py mirrors the structures
// and checks the shapes.
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

// One map per query; query is the step from one to the next, or 0 if all share one.
template <class T>
struct QueryMap : Map<T> {
  int64_t query = 0;
};

// The ELSA op; shapes as in mmlocal/ops/elsa.
template <class T>
struct Elsa {
  int64_t batch, height, width, heads, head_dims, kernel, dilation;
  int64_t parts;  // of the sums below
  bool softmax;
  Map<const T> value, attn, grad;  // (padded channels), (heads * taps), (padded channels)
  const T* mul;                    // (taps, padded channels) or null
  const T* add;                    // (taps, padded channels) or null
  Map<T> weights;                  // (heads * taps): the softmax of attn, or attn itself
  Map<T> out, grad_value;          // (padded channels)
  Map<T> grad_attn;                // (heads * taps); may be the memory of the softmax
  T* sum_mul;  // (parts, taps, padded channels), zero at first: the gradient of mul, or null
  T* sum_add;  // (parts, taps, padded channels), zero at first: the gradient of add, or null
};

// The largest scores of QnA.
template <class T>
struct QnaPeak {
  int64_t batch, height, width, tables;
  int64_t parts;  // in which the rows of a sample are cut
  Map<const T> scores;
  T* peak;  // (batch, parts, padded tables), -inf at first; NaN if a score is NaN or infinity
};

// The QnA op; shapes as in mmlocal/ops/qna. A table is a query of a head:
// table = query * heads + head. Its tokens enter as E = exp(score - shift) / 2^K, its taps as
// R = exp(rel_pos - max rel_pos). Gradients are null where they are not needed.
template <class T>
struct Qna {
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t queries, heads, kernel, stride, padding;
  int64_t parts;  // of the sums below
  bool sum_queries;
  Map<const T> value, scores;
  QueryMap<const T> grad;
  const T* shift;       // (batch, padded tables), 0 unless the scores are large
  const T* power;       // (batch, padded tables): K, a whole number
  const T* rel;         // (taps, padded tables): R
  const T* mix;         // (taps, vectors of channels, queries, lanes): R times tap_weight
  const T* rel_pos;     // (tables, taps) or null, as they came
  const T* tap_weight;  // (tables, taps) or null
  QueryMap<T> out;
  Map<T> inverse;  // (padded tables) per window: 1 / Z with Z = sum_t E R, or 0 if Z is too small
  Map<T> mean;     // (padded tables) per window: what the softmax subtracts, over Z
  // Z is too small where all scores of a window lie far below the largest of the map. If such a
  // window has tokens at all, its flag is 1: the tiles leave this table of it out, and its softmax
  // is computed exactly, relative to the window's own maximum.
  uint8_t* exact;       // (batch, out_height, out_width, tables), zero at first
  uint8_t* exact_rows;  // (batch, out_height), zero at first: 1 where a row has such windows
  Map<T> grad_value, grad_scores;
  // The gradients of rel, mix and of the exact windows, zero at first, or all null.
  T* sum_rel;        // (parts, taps, padded tables)
  T* sum_mix;        // (parts, taps, vectors of channels, queries, lanes)
  T* sum_exact_rel;  // (parts, tables, taps)
  T* sum_exact_mix;  // (parts, tables, taps)
};

// The kernels of one instruction set. Scratch memory begins at a whole vector.
template <class T>
struct Kernels {
  int64_t lanes;  // of a vector

  // Rows [begin, end) of batch * height.
  int64_t (*elsa_scratch)(const Elsa<T>&);
  void (*elsa_forward)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_weights)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_grad_value)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_grad_attn)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_grad_ghost)(const Elsa<T>&, T* scratch, int64_t part, int64_t begin, int64_t end);

  // One of batch * parts.
  void (*qna_peak)(const QnaPeak<T>&, int64_t part);
  // Tasks [begin, end): tiles of windows, or of tokens.
  int64_t (*qna_window_tasks)(const Qna<T>&);
  int64_t (*qna_window_scratch)(const Qna<T>&);
  void (*qna_forward)(const Qna<T>&, T* scratch, int64_t begin, int64_t end);
  void (*qna_backward_windows)(const Qna<T>&, T* scratch, int64_t part, int64_t begin, int64_t end);
  int64_t (*qna_token_tasks)(const Qna<T>&);
  int64_t (*qna_token_scratch)(const Qna<T>&);
  void (*qna_backward_tokens)(const Qna<T>&, T* scratch, int64_t begin, int64_t end);
};

// Those of x86 exist on x86 only.
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
