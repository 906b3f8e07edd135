// The structures that the library and the kernels share. The kernels are compiled once per
// instruction set. They get pointers and numbers, and nothing of PyTorch. T is float or double.
//
// "Padded" counts are rounded up to whole vectors. mmlocal/ops/<op>/cpp.py mirrors the structures
// and checks the shapes.
#pragma once

#include <cstdint>

namespace mmlocal {

// A channels-last map. The channels of a pixel lie side by side. The strides of samples, rows and
// pixels are free. data is null where there is no map.
template <class T>
struct Map {
  T* data = nullptr;
  int64_t b = 0, y = 0, x = 0;

  __attribute__((always_inline)) T* at(int64_t sample, int64_t row, int64_t col) const {
    return data + sample * b + row * y + col * x;
  }
};

// One map per query. `query` is the step from one map to the next, or 0 if all queries share one.
template <class T>
struct QueryMap : Map<T> {
  int64_t query = 0;
};

// The arguments of the ELSA op. mmlocal/ops/elsa says what they mean. Without softmax, grad_attn is
// the map of scores of mmlocal/ops/neighborhood, for the queries `grad` and the keys `value`.
template <class T>
struct Elsa {
  int64_t batch, height, width, heads, head_dims, kernel, dilation;
  int64_t parts;  // how many parts the sums below have
  bool softmax;
  bool masked;                     // whether taps outside the map have -inf in grad_attn, not 0
  Map<const T> value, attn, grad;  // (padded channels), (heads * taps), (padded channels)
  const T* mul;                    // (taps, padded channels) or null
  const T* add;                    // (taps, padded channels) or null
  Map<T> weights;                  // (heads * taps): the softmax of attn, or attn itself
  Map<T> out, grad_value;          // (padded channels)
  Map<T> grad_attn;                // (heads * taps); may be the memory of the softmax
  T* sum_mul;  // (parts, taps, padded channels), zero at first: the gradient of mul, or null
  T* sum_add;  // (parts, taps, padded channels), zero at first: the gradient of add, or null
};

// The arguments of the QnA op. mmlocal/ops/qna says what they mean. A table belongs to one query of
// one head: table = query * heads + head. Tokens enter as E = exp(score - shift) / 2^K, and taps as
// R = exp(rel_pos - max rel_pos). Gradients are null where they are not needed.
template <class T>
struct Qna {
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t queries, heads, kernel, stride, padding;
  int64_t parts;  // how many parts the sums below and the peaks have at most
  bool sum_queries;
  bool refused;  // set by the function: a number is not finite, and the results mean nothing
  Map<const T> value, scores;
  QueryMap<const T> grad;
  const T* rel_pos;     // (tables, taps) or null
  const T* tap_weight;  // (tables, taps) or null
  QueryMap<T> out;
  Map<T> inverse;  // (padded tables) per window: 1 / Z with Z = sum_t E R, or 0 if Z is too small
  Map<T> mean;     // (padded tables) per window: the mean gradient under the softmax, over Z
  // Z is too small where all scores of a window lie far below the largest score of the map. The
  // tiles then leave this table of the window out, and its softmax is computed exactly, relative to
  // the window's own maximum.
  uint8_t* exact_rows;  // (batch, out_height), zero at first: 1 where a row has such a window
  Map<T> grad_value, grad_scores;
  T* grad_rel_pos;     // (tables, taps)
  T* grad_tap_weight;  // (tables, taps)
  T* tables;           // room for all tables of QnaCall
  T* sums;             // (parts, all sums of QnaCall), or null without the gradients of tables
};

// The same with pointers into tables and sums.
template <class T>
struct QnaCall : Qna<T> {
  explicit QnaCall(const Qna<T>& given) : Qna<T>(given) {}

  T* peak;   // (batch, parts, padded tables): the largest scores; NaN for NaN and infinity
  T* shift;  // (batch, padded tables): 0 unless the scores are large
  T* power;  // (batch, padded tables): K, a whole number
  T* rel;    // (taps, padded tables): R
  T* mix;    // (vectors of channels, taps, queries, lanes): R times tap_weight
  // One part of the gradients of rel and mix, and of both tables in exact windows.
  T *sum_rel, *sum_exact_rel, *sum_exact_mix;  // (taps, padded tables)
  T* sum_mix;                                  // (vectors of channels, taps, queries, lanes)
  int64_t sums_of_part;                        // the step from one part to the next
};

// The arguments of the outlook op. mmlocal/ops/outlook says what they mean. There are rows * cols
// windows. Gradients are null where they are not needed.
template <class T>
struct Outlook {
  int64_t batch, height, width, rows, cols, heads, head_dims, kernel, stride, padding;
  bool softmax;
  Map<const T> value, attn, grad;  // (padded channels), (heads * taps * taps), (padded channels)
  Map<T> out, grad_value;          // (padded channels)
  Map<T> grad_attn;                // (heads * taps * taps)
};

// The arguments of deformable attention, for one sample of the batch. mmlocal/ops/deformable says
// what they mean. `value` has a map after the other for each head, and a row of zeros after each
// map, which samples outside read. Gradients are null where they are not needed.
template <class T>
struct Deformable {
  int64_t queries, heads, maps, points, head_dims;
  int64_t channels;      // head_dims, padded
  int64_t rows;          // rows of value for each head
  int64_t block;         // how many queries a task has
  bool border, softmax;  // whether the border goes on outside, and whether weights are logits
  const int64_t* sizes;  // (maps, 3): height, width and first row
  const T* value;        // (heads, rows, padded channels)
  const T* points_xy;    // (queries, maps, 2): reference points, or null
  const T* positions;    // (queries, heads, maps, points, 2): offsets if there are points_xy
  const T* weights;      // (queries, heads, maps, points)
  const T* grad;         // (queries, heads, head_dims)
  T* out;                // (queries, heads, head_dims)
  T* grad_value;         // (heads, rows, padded channels), zero at first
  T* grad_points;        // (queries, maps, 2); needs grad_positions
  T* grad_positions;     // (queries, heads, maps, points, 2)
  T* grad_weights;       // (queries, heads, maps, points)
};

// The arguments of the grouped convolution. mmlocal/ops/convolution says what they mean. A group
// has 4 channels. A vector has at least one group, so that it may have more numbers than `lanes`.
template <class T>
struct GroupedConvolution {
  int64_t batch, channels, height, width, out_height, out_width;
  int64_t kernel, padding, dilation;
  int64_t parts;      // how many parts the sums have
  bool transposed;    // whether the weight is transposed in each group, and its taps are reversed
  bool refused;       // set by the function: a number is not finite, and the results mean nothing
  Map<const T> x;     // (height, width, padded channels)
  Map<const T> grad;  // (out_height, out_width, padded channels)
  Map<T> out;         // (out_height, out_width, padded channels)
  const T* weight;    // (channels, 4, taps)
  const T* bias;      // (channels) or null
  T* grad_weight;     // (channels, 4, taps)
  T* grad_bias;       // (channels) or null
  T* tables;          // (vectors, 4 * taps + 1, numbers in a vector): weights, then the bias
  T* sums;            // (parts, vectors, 4 * taps + 1, numbers in a vector): their gradients
};

// The kernels of one instruction set. Scratch memory begins at a whole vector.
template <class T>
struct Kernels {
  int64_t lanes;  // numbers in a vector

  // These work on rows [begin, end) of batch * height.
  int64_t (*elsa_scratch)(const Elsa<T>&);
  void (*elsa_forward)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_weights)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_grad_value)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_grad_attn)(const Elsa<T>&, T* scratch, int64_t begin, int64_t end);
  void (*elsa_grad_ghost)(const Elsa<T>&, T* scratch, int64_t part, int64_t begin, int64_t end);

  // This works on one of batch * parts parts.
  void (*qna_peak)(const QnaCall<T>&, int64_t part);
  // Makes shift and power. Returns whether all scores are below infinity.
  bool (*qna_scales)(const QnaCall<T>&);
  // Makes rel and mix, by tasks [begin, end). Returns whether all numbers are below infinity.
  int64_t (*qna_table_tasks)(const QnaCall<T>&);
  int64_t (*qna_table_scratch)(const QnaCall<T>&);
  bool (*qna_tables)(const QnaCall<T>&, T* scratch, int64_t begin, int64_t end);
  // This works on taps [begin, end).
  void (*qna_grad_tables)(const QnaCall<T>&, T* scratch, int64_t begin, int64_t end);
  // These work on tasks [begin, end). A task is a tile of windows, or of tokens.
  int64_t (*qna_window_tasks)(const QnaCall<T>&);
  int64_t (*qna_window_scratch)(const QnaCall<T>&);
  void (*qna_forward)(const QnaCall<T>&, T* scratch, int64_t begin, int64_t end);
  // Returns whether all numbers are finite.
  bool (*qna_backward_windows)(const QnaCall<T>&, T* scratch, int64_t part, int64_t begin,
                               int64_t end);
  int64_t (*qna_token_tasks)(const QnaCall<T>&);
  int64_t (*qna_token_scratch)(const QnaCall<T>&);
  void (*qna_backward_tokens)(const QnaCall<T>&, T* scratch, int64_t begin, int64_t end);

  // These work on rows [begin, end) of batch * height.
  int64_t (*outlook_scratch)(const Outlook<T>&);
  void (*outlook_forward)(const Outlook<T>&, T* scratch, int64_t begin, int64_t end);
  void (*outlook_backward)(const Outlook<T>&, T* scratch, int64_t begin, int64_t end);

  // These work on tasks [begin, end).
  int64_t (*deformable_tasks)(const Deformable<T>&);
  int64_t (*deformable_scratch)(const Deformable<T>&);
  void (*deformable_forward)(const Deformable<T>&, T* scratch, int64_t begin, int64_t end);
  void (*deformable_grad_samples)(const Deformable<T>&, T* scratch, int64_t begin, int64_t end);
  // This works on maps [begin, end) of heads * maps, and the last one on queries.
  void (*deformable_grad_value)(const Deformable<T>&, T* scratch, int64_t begin, int64_t end);
  void (*deformable_grad_points)(const Deformable<T>&, int64_t begin, int64_t end);

  int64_t (*convolution_vectors)(const GroupedConvolution<T>&);
  int64_t (*convolution_tasks)(const GroupedConvolution<T>&);  // for each vector
  int64_t (*convolution_scratch)(const GroupedConvolution<T>&);
  // These work on vectors [begin, end). They return whether all numbers are finite.
  bool (*convolution_tables)(const GroupedConvolution<T>&, int64_t begin, int64_t end);
  bool (*convolution_add_parts)(const GroupedConvolution<T>&, int64_t begin, int64_t end);
  // This works on tasks * vectors, and the last one on parts * vectors.
  void (*convolution_forward)(const GroupedConvolution<T>&, T* scratch, int64_t begin, int64_t end);
  void (*convolution_grad_weight)(const GroupedConvolution<T>&, T* scratch, int64_t begin,
                                  int64_t end);
};

// The namespaces avx2 and avx512 have definitions on x86 only.
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
