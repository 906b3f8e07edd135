// A grouped convolution: the tables of weights, and the outputs. The gradient of the input is a
// convolution of the gradient of the output, with other tables.

// How many taps of a row of the kernel share the factors of a pixel.
constexpr int kTaps = kManyRegisters ? 7 : 4;

// The size of the table of one vector: (channels of a group, taps, lanes) and the bias (lanes).
template <class T>
MMLOCAL_INLINE int64_t convolution_table(const GroupedConvolution<T>& a) {
  return (kGroup * a.kernel * a.kernel + 1) * Grouped<T>::n;
}

template <class T>
int64_t convolution_vectors(const GroupedConvolution<T>& a) {
  return ceil_div(a.channels, Grouped<T>::n);
}

template <class T>
int64_t convolution_tasks(const GroupedConvolution<T>& a) {
  return ConvolutionTasks(a).count;
}

// Makes the tables of vectors [begin, end). Returns whether all weights are finite.
template <class T>
bool convolution_tables(const GroupedConvolution<T>& a, int64_t begin, int64_t end) {
  constexpr int n = Grouped<T>::n;
  const int64_t taps = a.kernel * a.kernel;
  bool finite = true;
  for (int64_t v = begin; v < end; ++v) {
    T* table = a.tables + v * convolution_table<T>(a);
    for (int64_t lane = 0; lane < n; ++lane) {
      const int64_t channel = v * n + lane, first = channel / kGroup * kGroup,
                    own = channel % kGroup;
      const bool there = channel < a.channels;
      for (int64_t c = 0; c < kGroup; ++c) {
        T* to = table + c * taps * n + lane;
        if (!there) {
          for (int64_t t = 0; t < taps; ++t) to[t * n] = 0;
          continue;
        }
        const T* from =
            a.weight + (a.transposed ? (first + c) * kGroup + own : channel * kGroup + c) * taps;
        int64_t step = n;
        if (a.transposed) {
          to += (taps - 1) * n;
          step = -n;
        }
        for (int64_t t = 0; t < taps; ++t) to[t * step] = from[t];
      }
      table[kGroup * taps * n + lane] = a.bias && there ? a.bias[channel] : 0;
    }
    finite = are_finite<T>(table, kGroup * taps) && finite;
  }
  return finite;
}

// Adds N taps of one row of the kernel and one channel of each group to a block of pixels.
template <class T, int N, int C>
MMLOCAL_INLINE void add_taps_of_channel(typename Grouped<T>::Vec* sums, const T* pixels,
                                        const T* weights) {
  using G = Grouped<T>;
  typename G::Vec weight[N];
#pragma GCC unroll 8
  for (int t = 0; t < N; ++t) weight[t] = G::at(weights + t * G::n);
#pragma GCC unroll 16
  for (int j = 0; j < kBlock + N - 1; ++j) {
    typename G::Vec x;
    spread<T, C>(pixels + j * G::n, x);
#pragma GCC unroll 8
    for (int t = 0; t < N; ++t) {
      if (j >= t && j - t < kBlock) sums[j - t] += x * weight[t];
    }
  }
}

template <class T, int N, int C = 0>
MMLOCAL_INLINE void add_taps(typename Grouped<T>::Vec* sums, const T* pixels, const T* weights,
                             int64_t step) {
  // Otherwise the compiler loads the pixels once for all channels, and runs out of registers.
  __asm__("" : "+r"(pixels));
  add_taps_of_channel<T, N, C>(sums, pixels, weights + C * step);
  if constexpr (C + 1 < kGroup) add_taps<T, N, C + 1>(sums, pixels, weights, step);
}

// Adds the last `count` taps of a row, which are fewer than N.
template <class T, int N>
MMLOCAL_INLINE void add_last_taps(typename Grouped<T>::Vec* sums, const T* pixels, const T* weights,
                                  int64_t step, int64_t count) {
  if constexpr (N > 1) {
    if (count == N - 1) return add_taps<T, N - 1>(sums, pixels, weights, step);
    add_last_taps<T, N - 1>(sums, pixels, weights, step, count);
  }
}

// Computes `count` outputs side by side, at most a block. `pixels` is the first tap of the first
// one, and `rows` are the rows of the kernel inside the map.
template <class T>
void convolve_block(const GroupedConvolution<T>& a, const T* table, const T* pixels, int64_t width,
                    Inside rows, T* out, int64_t out_step, int64_t count) {
  using G = Grouped<T>;
  const int64_t taps = a.kernel * a.kernel;
  typename G::Vec sums[kBlock];
#pragma GCC unroll 8
  for (int p = 0; p < kBlock; ++p) sums[p] = G::at(table + kGroup * taps * G::n);
  for (int64_t i = rows.begin; i < rows.end; ++i) {
    const T* x = pixels + i * width * G::n;
    const T* weights = table + i * a.kernel * G::n;
    int64_t rest = a.kernel;
    for (; rest >= kTaps; rest -= kTaps, x += kTaps * G::n, weights += kTaps * G::n) {
      add_taps<T, kTaps>(sums, x, weights, taps * G::n);
    }
    add_last_taps<T, kTaps>(sums, x, weights, taps * G::n, rest);
  }
#pragma GCC unroll 8
  for (int p = 0; p < kBlock; ++p) {
    if (p < count) G::at(out + p * out_step) = sums[p];
  }
}

// Works on tasks [begin, end) of all vectors. The scratch memory holds one tile.
template <class T>
void convolution_forward(const GroupedConvolution<T>& a, T* tile, int64_t begin, int64_t end) {
  constexpr int n = Grouped<T>::n;
  const ConvolutionTasks all(a);
  const int64_t vectors = convolution_vectors(a), step = all.step;
  for (int64_t index = begin; index < end; ++index) {
    const ConvolutionTask task(a, all, index / vectors);
    if (task.rows <= 0) continue;
    const int64_t v = index % vectors;
    const int64_t width = round_up(task.cols, kBlock) + a.kernel - 1;
    const int64_t top = task.top - a.padding, left = task.left - a.padding;
    fill_tile(tile, a.x, a.height, a.width, task.sample, v * n, top, left, step,
              task.rows + a.kernel - 1, width);
    const T* table = a.tables + v * convolution_table(a);
    for (int64_t i = 0; i < task.rows; ++i) {
      const Inside rows(top + i * step, step, a.kernel, a.height);
      for (int64_t j = 0; j < task.cols; j += kBlock) {
        T* out = a.out.at(task.sample, task.top + i * step, task.left + j * step) + v * n;
        convolve_block(a, table, tile + (i * width + j) * n, width, rows, out, step * a.out.x,
                       task.cols - j);
      }
    }
  }
}
