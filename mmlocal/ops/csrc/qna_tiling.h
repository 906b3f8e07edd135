// The QnA op. Let E = exp(score) of a token and R = exp(rel_pos) of a tap, each divided by a
// constant that cancels. Then
//
//     out[c, p] = sum_l (1 / Z[l, p]) sum_t (R * tap_weight)[l, t] * (E * value)[l, c, p + t]
//     Z[l, p]   = sum_t R[l, t] * E[l, p + t]
//
// So each token's exponential is computed once. Only depth-wise convolutions grow with the window,
// and their tiles lie in the cache. The backward pass consists of such a convolution, its
// transpose, and the gradient of its weights.
//
// The constants belong to a whole map (see Qna in kernels.h). If all scores of a window lie far
// below the largest score of the map, Z falls below kSmallest. Such a window is taken exactly: on
// its own, relative to its own maximum.
//
// This file cuts the maps into tiles.

template <class T>
constexpr T kSmallest = T(1) / (int64_t(1) << 60);

// The most bytes that the rows of a tile may take. It is a part of a core's L2 cache.
constexpr int64_t kTileBytes = 320 * 1024;

template <class T>
struct Sizes {
  int64_t tables, padded;  // tables, and their number rounded up to whole vectors
  int64_t vectors, mixed;  // vectors of channels, and their number times queries
  int64_t vector_mix;      // numbers of mix for each vector of channels
  explicit Sizes(const QnaCall<T>& a)
      : tables(a.queries * a.heads),
        padded(round_up(tables, kLanes<T>)),
        vectors((a.channels + kLanes<T> - 1) / kLanes<T>),
        mixed(vectors * a.queries),
        vector_mix(a.kernel * a.kernel * a.queries * kLanes<T>) {}

  // The table at which to load a vector for table t. It overlaps the vector before where it would
  // end behind the tables, because part of a vector is loaded slowly.
  __attribute__((always_inline)) int64_t whole(int64_t t) const {
    return tables < kLanes<T> ? t : smaller(t, tables - kLanes<T>);
  }
};

// Blocks of pixels of a convolution. Maps of images of 224x224 have multiples of 7 columns.
constexpr int kOddPixels = MMLOCAL_VECTOR_BYTES == 16 ? kPixels : 7;

// The size of blocks with fewer loads for a row: of each pixel, and of the table for each block.
MMLOCAL_INLINE int64_t block_pixels(int64_t cols) {
  const auto loads = [&](int64_t pixels) { return ceil_div(cols, pixels) * (pixels + 1); };
  return loads(kOddPixels) < loads(kPixels) ? kOddPixels : kPixels;
}

// The size and number of tiles of an output map. A tile keeps the rows of the other map that it
// needs in a ring.
template <class T>
struct Tiling {
  int64_t pixels;      // of a block
  int64_t rows, cols;  // of a tile; cols are whole blocks of pixels
  int64_t row_tiles, col_tiles;
  int64_t ring_rows, ring_cols;

  Tiling(const QnaCall<T>& a, int64_t height, int64_t width, int64_t ring_rows, int64_t stride,
         int64_t shrink)
      : ring_rows(ring_rows) {
    const Sizes<T> s(a);
    const int64_t bytes = ring_rows * (s.mixed * kLanes<T> + s.padded) * sizeof(T);
    cols = (kTileBytes / bytes - a.kernel) * shrink / stride;
    cols = larger(cols, 2 * kPixels);
    cols = smaller(smaller(cols, 128), width);
    pixels = block_pixels(ceil_div(cols, shrink));
    cols = round_up(cols, pixels * shrink);
    // Tiles are small enough to give work to many threads. They are not smaller, because each tile
    // computes some of its neighbours' rows again.
    rows = larger(2 * a.kernel + 1, smaller(larger(16, 8 * a.kernel), a.batch * height / 64));
    row_tiles = (height + rows - 1) / rows;
    rows = (height + row_tiles - 1) / row_tiles;  // all tiles have about as many
    col_tiles = (width + cols - 1) / cols;
    ring_cols = cols / shrink * stride + a.kernel;
  }

  // Fills the pixels of a ring's row that lie outside a map with 0. The row begins at column x0 of
  // the map.
  void clear_border(T* row, int64_t pixel, int64_t x0, int64_t width) const {
    const int64_t left = larger(0, -x0), end = larger(left, smaller(ring_cols, width - x0));
    __builtin_memset(row, 0, left * pixel * sizeof(T));
    __builtin_memset(row + end * pixel, 0, (ring_cols - end) * pixel * sizeof(T));
  }

  int64_t tiles(const QnaCall<T>& a) const { return a.batch * row_tiles * col_tiles; }
};

template <class T>
static Tiling<T> window_tiling(const QnaCall<T>& a) {
  return Tiling<T>(a, a.out_height, a.out_width, a.kernel, a.stride, 1);
}

// A token of a map with stride belongs to fewer windows.
template <class T>
static Tiling<T> token_tiling(const QnaCall<T>& a) {
  return Tiling<T>(a, a.height, a.width, (a.kernel - 1) / a.stride + 1, 1, a.stride);
}

// The place of a tile.
template <class T>
struct Tile {
  int64_t b, y, x;

  Tile(const Tiling<T>& tiling, int64_t task)
      : b(task / tiling.col_tiles / tiling.row_tiles),
        y(task / tiling.col_tiles % tiling.row_tiles * tiling.rows),
        x(task % tiling.col_tiles * tiling.cols) {}
};

// For each lane of a vector of channels, the number of its table.
template <class T>
struct Expand {
  const IntVec<T> lane;
  const int64_t first, heads;

  __attribute__((always_inline)) Expand(const QnaCall<T>& a, const Heads<T>& of, int64_t vector)
      : lane(of.lane[vector]), first(of.first[vector]), heads(a.heads) {}

  // `tables` holds the numbers of one window or token, with room for a vector behind them.
  __attribute__((always_inline)) Vec<T> operator()(const T* tables, int64_t query) const {
    return permute<T>(load(tables + query * heads + first), lane);
  }
};

// Sums the channels of each head: from `mixed` vectors to one number per table.
template <class T>
static inline void sum_heads(const QnaCall<T>& a, const Sizes<T>& s, const T* x, T* tables) {
  constexpr int64_t n = kLanes<T>;
  const int64_t head_dims = a.channels / a.heads;
  for (int64_t t = 0; t < s.padded; ++t) tables[t] = 0;
  if (head_dims < n && (head_dims & (head_dims - 1)) == 0) {
    IntVec<T> lane;
    for (int i = 0; i < n; ++i) lane[i] = i;
    for (int64_t u = 0; u < s.mixed; ++u) {
      Vec<T> v = load(x + u * n);
      for (int64_t step = 1; step < head_dims; step *= 2) {
        v += permute<T>(v, lane ^ typename Types<T>::Int(step));
      }
      const int64_t head = u / a.queries * n / head_dims;
      const int64_t count = smaller(n / head_dims, a.heads - head);
      T* out = tables + u % a.queries * a.heads + head;
      for (int64_t i = 0; i < count; ++i) out[i] = v[i * head_dims];
    }
    return;
  }
  for (int64_t u = 0; u < s.mixed; ++u) {
    const int64_t first = u / a.queries * n;
    T* out = tables + u % a.queries * a.heads;
    if (head_dims % n == 0) {
      out[first / head_dims] += sum<T>(load(x + u * n));
      continue;
    }
    for (int64_t i = 0; i < smaller(n, a.channels - first); ++i) {
      out[(first + i) / head_dims] += x[u * n + i];
    }
  }
}
