// QnA: depth-wise convolutions, and the gradients of their weights. Each vector of channels is
// convolved on its own. U vectors are taken together, so that a few loads feed many
// multiplications.

// out[p][u] = sum over rows i and columns j of source[i][j + p][u] * table[i][j][u], for pixels p
// of the output.
template <class T>
struct Convolution {
  const T* const* source;           // the rows of pixels
  const T* const* table;            // the rows of taps
  int64_t rows, cols;               // numbers of taps
  int64_t source_col, table_col;    // steps from tap to tap
  int64_t source_pixel, out_pixel;  // steps from one pixel of the output to the next
  int64_t pixels;                   // of a block: kPixels or kOddPixels
};

// Takes P pixels and U vectors, from an offset in the rows of source and table on. The source's
// pixels are STEP vectors apart, or source_pixel numbers if STEP is 0. This is not inlined, because
// GCC 12 then keeps the sums in memory.
template <class T, int P, int U, int STEP>
static __attribute__((noinline)) void convolve_at(const Convolution<T>& c, int64_t source_offset,
                                                  int64_t table_offset, T* out) {
  constexpr int n = kLanes<T>;
  const int64_t pixel = STEP ? STEP * n : c.source_pixel;
  Vec<T> total[P][U] = {};
  for (int64_t i = 0; i < c.rows; ++i) {
    const T* s = c.source[i] + source_offset;
    const T* t = c.table[i] + table_offset;
    for (int64_t j = 0; j < c.cols; ++j, s += c.source_col, t += c.table_col) {
      Vec<T> w[U];
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) w[u] = load(t + u * n);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) total[p][u] += load(s + p * pixel + u * n) * w[u];
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) store(out + p * c.out_pixel + u * n, total[p][u]);
  }
}

// The same for P pixels at any step. Loads are faster at steps that the compiler knows.
template <class T, int P, int U>
MMLOCAL_INLINE void convolve_pixels(const Convolution<T>& c, int64_t source_offset,
                                    int64_t table_offset, T* out) {
  constexpr int n = kLanes<T>;
  const auto part = c.source_pixel == n       ? convolve_at<T, P, U, 1>
                    : c.source_pixel == 2 * n ? convolve_at<T, P, U, 2>
                    : c.source_pixel == 4 * n ? convolve_at<T, P, U, 4>
                                              : convolve_at<T, P, U, 0>;
  part(c, source_offset, table_offset, out);
}

// The same for a block of pixels.
template <class T, int U>
MMLOCAL_INLINE void convolve(const Convolution<T>& c, int64_t source_offset, int64_t table_offset,
                             T* out) {
  const auto part =
      c.pixels == kOddPixels ? convolve_pixels<T, kOddPixels, U> : convolve_pixels<T, kPixels, U>;
  part(c, source_offset, table_offset, out);
}

// table[j][u] += sum over pixels x of grad[x][u] * source[x + j][u].
template <class T>
struct Correlation {
  int64_t pixels, cols;              // cols: taps j
  int64_t grad_pixel, source_pixel;  // steps from pixel to pixel
  int64_t source_col, table_col;     // steps from tap to tap
};

// Takes J taps and U vectors.
template <class T, int J, int U>
static inline void correlate(const Correlation<T>& c, const T* grad, const T* source, T* table) {
  constexpr int n = kLanes<T>;
  Vec<T> total[J][U] = {};
  for (int64_t x = 0; x < c.pixels; ++x) {
    Vec<T> g[U];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) g[u] = load(grad + x * c.grad_pixel + u * n);
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        total[j][u] += g[u] * load(source + x * c.source_pixel + j * c.source_col + u * n);
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) {
      T* out = table + j * c.table_col + u * n;
      store(out, load(out) + total[j][u]);
    }
  }
}

// The same for all taps of a row.
template <class T, int U>
static inline void correlate_row(const Correlation<T>& c, const T* grad, const T* source,
                                 T* table) {
  for (int64_t j = 0; j < c.cols;) {
    const int64_t left = c.cols - j;
    const auto part = left >= 4 && left != 5 ? correlate<T, 4, U>
                      : left >= 3            ? correlate<T, 3, U>
                      : left == 2            ? correlate<T, 2, U>
                                             : correlate<T, 1, U>;
    part(c, grad, source + j * c.source_col, table + j * c.table_col);
    j += left >= 4 && left != 5 ? 4 : smaller(left, 3);
  }
}
