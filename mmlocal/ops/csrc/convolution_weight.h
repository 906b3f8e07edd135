// A grouped convolution: the gradients of weight and bias.

// How many taps of a row of the kernel are summed together.
constexpr int kSums = (kManyRegisters ? 16 : 12) / kGroup;

template <class T, int N, int C = 0>
MMLOCAL_INLINE void add_products(typename Grouped<T>::Vec* sums, const T* pixel,
                                 const typename Grouped<T>::Vec* grads) {
  typename Grouped<T>::Vec x;
  spread<T, C>(pixel, x);
#pragma GCC unroll 4
  for (int t = 0; t < N; ++t) sums[C * N + t] += x * grads[t];
  if constexpr (C + 1 < kGroup) add_products<T, N, C + 1>(sums, pixel, grads);
}

// Adds the gradients of N taps side by side, from tap (row, col) on, for one tile of pixels and one
// of gradients. The latter has kSums - 1 pixels more on each side.
template <class T, int N>
void add_grad_taps(const GroupedConvolution<T>& a, const ConvolutionTask& task, const T* pixels,
                   const T* grads, int64_t row, int64_t col, T* total) {
  using G = Grouped<T>;
  constexpr int n = G::n;
  const int64_t step = a.dilation, taps = a.kernel * a.kernel;
  const int64_t pixel_row = (task.cols + a.kernel - 1) * n;
  const int64_t grad_row = (task.cols + 2 * (kSums - 1)) * n;
  const Inside rows(task.top + row * step - a.padding, step, task.rows, a.height);
  const Inside cols(task.left - a.padding, step, task.cols + a.kernel - 1, a.width);
  const int64_t begin = larger(cols.begin, col), end = smaller(cols.end, col + task.cols + N - 1);
  typename G::Vec sums[kGroup * N] = {};
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const T* x = pixels + (i + row) * pixel_row;
    const T* g = grads + i * grad_row + (kSums - 1 - col) * n;
    for (int64_t j = begin; j < end; ++j) {
      typename G::Vec grad[N];
#pragma GCC unroll 4
      for (int t = 0; t < N; ++t) grad[t] = G::at(g + (j - t) * n);
      add_products<T, N>(sums, x + j * n, grad);
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kGroup; ++c) {
#pragma GCC unroll 4
    for (int t = 0; t < N; ++t) {
      G::at(total + (c * taps + row * a.kernel + col + t) * n) += sums[c * N + t];
    }
  }
}

template <class T, int N = kSums>
MMLOCAL_INLINE void add_grad_group(const GroupedConvolution<T>& a, const ConvolutionTask& task,
                                   const T* pixels, const T* grads, int64_t row, int64_t col,
                                   int64_t count, T* total) {
  if (count == N) return add_grad_taps<T, N>(a, task, pixels, grads, row, col, total);
  if constexpr (N > 1) {
    add_grad_group<T, N - 1>(a, task, pixels, grads, row, col, count, total);
  }
}

// The scratch memory of a task: a tile of pixels and one of gradients.
template <class T>
int64_t convolution_scratch(const GroupedConvolution<T>& a) {
  const int64_t rows = 2 * kRows + a.kernel - 1;
  return rows * tile_width(a) * Grouped<T>::n;
}

// Works on items [begin, end) of parts * vectors. An item is the sums of one part and one vector.
template <class T>
void convolution_grad_weight(const GroupedConvolution<T>& a, T* scratch, int64_t begin,
                             int64_t end) {
  using G = Grouped<T>;
  constexpr int n = G::n;
  const ConvolutionTasks all(a);
  const int64_t vectors = ceil_div(a.channels, n), taps = a.kernel * a.kernel, step = a.dilation;
  const int64_t size = convolution_table<T>(a), groups = ceil_div(a.kernel, kSums);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t part = item / vectors, v = item % vectors;
    T* total = a.sums + item * size;
    for (int64_t i = 0; i < size; ++i) total[i] = 0;
    const int64_t last = (part + 1) * all.count / a.parts;
    for (int64_t index = part * all.count / a.parts; index < last; ++index) {
      const ConvolutionTask task(a, all, index);
      if (task.rows <= 0) continue;
      const int64_t rows = task.rows + a.kernel - 1, cols = task.cols + a.kernel - 1;
      T* grads = scratch + rows * cols * n;
      fill_tile<T>(scratch, a.x, a.height, a.width, task.sample, v * n, task.top - a.padding,
                   task.left - a.padding, step, rows, cols);
      const int64_t grad_cols = task.cols + 2 * (kSums - 1);
      fill_tile<T>(grads, a.grad, a.out_height, a.out_width, task.sample, v * n, task.top,
                   task.left - (kSums - 1) * step, step, task.rows, grad_cols);
      typename G::Vec sum = {};
      for (int64_t i = 0; i < task.rows * grad_cols; ++i) sum += G::at(grads + i * n);
      G::at(total + kGroup * taps * n) += sum;
      for (int64_t row = 0; row < a.kernel; ++row) {
        for (int64_t group = 0; group < groups; ++group) {
          const int64_t col = group * a.kernel / groups;
          const int64_t count = (group + 1) * a.kernel / groups - col;
          add_grad_group<T>(a, task, scratch, grads, row, col, count, total);
        }
      }
    }
  }
}

// Adds up the parts of vectors [begin, end). Returns whether all gradients are finite.
template <class T>
bool convolution_add_parts(const GroupedConvolution<T>& a, int64_t begin, int64_t end) {
  constexpr int n = Grouped<T>::n;
  const int64_t vectors = ceil_div(a.channels, n), taps = a.kernel * a.kernel;
  const int64_t size = convolution_table<T>(a);
  bool finite = true;
  for (int64_t v = begin; v < end; ++v) {
    T* total = a.sums + v * size;
    for (int64_t part = 1; part < a.parts; ++part) {
      const T* more = a.sums + (part * vectors + v) * size;
      for (int64_t i = 0; i < size; ++i) total[i] += more[i];
    }
    for (int64_t lane = 0; lane < smaller(n, a.channels - v * n); ++lane) {
      const int64_t channel = v * n + lane;
      T* to = a.grad_weight + channel * kGroup * taps;
      for (int64_t i = 0; i < kGroup * taps; ++i) to[i] = total[i * n + lane];
      if (a.grad_bias) a.grad_bias[channel] = total[kGroup * taps * n + lane];
    }
    finite = are_finite<T>(total, kGroup * taps) && finite;
  }
  return finite;
}
