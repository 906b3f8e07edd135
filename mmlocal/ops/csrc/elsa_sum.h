// ELSA: the sum over the taps of a window, for a block of pixels at a time. The sums of a block
// stay in registers. The forward pass and the gradient of the values are such sums.

// out[p] = sum over taps of (mul * weight + add) * value, for the pixels p of a tile. Tap (i, j) of
// pixel (y, x) of the tile has the value (y + i, x + j).
template <class T>
struct ElsaSum {
  const T* value;  // this and the other pointers are at the first pixel and the first tap
  int64_t value_row, value_col;
  const T* weight;  // taps of a row lie side by side; see also elsa_sum_taps
  int64_t weight_tap_row, weight_row, weight_col, weight_head;
  const T *mul, *add;  // null where there is no such ghost head
  int64_t table_row, table_col;
  T* out;
  int64_t out_row, out_col;
  int64_t kernel, rows, cols;
  int64_t top, bottom, left, right;  // these rows and columns of values are in the map
  T* packed;                         // room for the values of two vectors of channels
};

// A vector with the weight of each lane's own head.
template <class T>
MMLOCAL_INLINE Vec<T> lane_weights(const T* weight, int64_t head_step, int64_t heads,
                                   const IntVec<T>& lane) {
  Vec<T> own = broadcast(*weight);
  for (int64_t h = 1; h < heads; ++h) {
    weight += head_step;
    own = lane == static_cast<typename Types<T>::Int>(h) ? broadcast(*weight) : own;
  }
  return own;
}

// Adds J taps of one row for P pixels and U vectors. With EDGE, some of the columns [0, P + J - 1)
// may be outside the map. With SHARED, several heads share the vector. With OPPOSITE, the weights
// are those that the neighbours have for the opposite taps.
template <class T, int P, int U, int J, bool EDGE, bool SHARED, bool OPPOSITE, bool MUL, bool ADD>
MMLOCAL_INLINE void elsa_sum_taps(const ElsaSum<T>& s, const T* value, const T* weight,
                                  int64_t table, int64_t left, int64_t right, int64_t heads,
                                  const IntVec<T>& lane, Vec<T> (&total)[P][U]) {
  constexpr int n = kLanes<T>;
  Vec<T> m[J][U], a[J][U];
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) {
      if (MUL) m[j][u] = load(s.mul + table + j * s.table_col + u * n);
      if (ADD) a[j][u] = load(s.add + table + j * s.table_col + u * n);
    }
  }
  constexpr int kWeightCols = OPPOSITE ? P + J - 1 : P;
  const T* weights[kWeightCols];
  weights[0] = weight;
#pragma GCC unroll 16
  for (int c = 1; c < kWeightCols; ++c) weights[c] = hidden(weights[c - 1] + s.weight_col);
#pragma GCC unroll 16
  for (int c = 0; c < P + J - 1; ++c) {  // a value serves all pixels that have its column
    if (EDGE && (c < left || c >= right)) continue;
    Vec<T> v[U];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) v[u] = load(value + (c * U + u) * n);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      const int p = c - j;
      if (p < 0 || p >= P) continue;
      const T* w = OPPOSITE ? weights[c] - j : weights[p] + j;
      const Vec<T> own = SHARED ? lane_weights(w, s.weight_head, heads, lane) : broadcast(*w);
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        Vec<T> filter = own;
        if (MUL && ADD) filter = own * m[j][u] + a[j][u];
        if (MUL && !ADD) filter = own * m[j][u];
        if (!MUL && ADD) filter = own + a[j][u];
        total[p][u] += filter * v[u];
      }
    }
  }
}

// The sums of P pixels from (y, x) on.
template <class T, int P, int U, bool EDGE, bool SHARED, bool OPPOSITE, bool MUL, bool ADD>
MMLOCAL_INLINE void elsa_sum_block(const ElsaSum<T>& s, const Heads<T>& heads, int64_t vector,
                                   int64_t y, int64_t x) {
  constexpr int n = kLanes<T>, J = 2;
  const int64_t head = heads.first[vector], count = heads.last[vector] - head + 1;
  const IntVec<T> lane = heads.lane[vector];
  const int64_t width = s.cols + s.kernel - 1;
  const int64_t weight_step = OPPOSITE ? s.weight_col - 1 : 1;
  const int64_t first = larger(0, s.top - y), last = smaller(s.kernel, s.bottom - y);
  const T* value = s.packed + (y * width + x) * (U * n);
  const T* weight = s.weight + y * s.weight_row + x * s.weight_col + head * s.weight_head;
  Vec<T> total[P][U] = {};
  for (int64_t i = first; i < last; ++i) {
    const T *v = value + i * width * (U * n), *w = weight + i * s.weight_tap_row;
    int64_t table = i * s.table_row + vector * n;
    int64_t left = s.left - x, right = s.right - x, taps = s.kernel;
    for (; taps >= J; taps -= J) {
      elsa_sum_taps<T, P, U, J, EDGE, SHARED, OPPOSITE, MUL, ADD>(s, v, w, table, left, right,
                                                                  count, lane, total);
      v += J * U * n;
      w += J * weight_step;
      table += J * s.table_col;
      left -= J;
      right -= J;
    }
    for (; J > 1 && taps > 0; --taps) {
      elsa_sum_taps<T, P, U, 1, EDGE, SHARED, OPPOSITE, MUL, ADD>(s, v, w, table, left, right,
                                                                  count, lane, total);
      v += U * n;
      w += weight_step;
      table += s.table_col;
      --left;
      --right;
    }
  }
  T* out = s.out + y * s.out_row + x * s.out_col + vector * n;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) store(out + p * s.out_col + u * n, total[p][u]);
  }
}

// The sums of all pixels of a tile, for U vectors of one head from `vector` on.
template <class T, int U, bool SHARED, bool OPPOSITE, bool MUL, bool ADD>
static void elsa_sum(const ElsaSum<T>& sum, const Heads<T>& heads, int64_t vector) {
  constexpr int n = kLanes<T>;
  const ElsaSum<T> s = sum;  // a copy, whose members the compiler keeps in registers
  for (int64_t i = s.top; i < s.bottom; ++i) {
    for (int64_t j = s.left; j < s.right; ++j) {
      const T* value = s.value + i * s.value_row + j * s.value_col + vector * n;
      T* packed = s.packed + (i * (s.cols + s.kernel - 1) + j) * (U * n);
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) store(packed + u * n, load(value + u * n));
    }
  }
  // The outputs, and the values of the next tile below, are on their way while the sums are made.
  for (int64_t y = 0; y < s.rows; ++y) {
    for (int64_t x = 0; x < s.cols; ++x) {
      __builtin_prefetch(s.out + y * s.out_row + x * s.out_col + vector * n, 1);
      __builtin_prefetch(s.value + (s.bottom + y) * s.value_row + (x + s.kernel / 2) * s.value_col +
                         vector * n);
    }
  }
  for (int64_t y = 0; y < s.rows; ++y) {
    for (int64_t x = 0; s.cols < kPixels && x < s.cols; ++x) {
      elsa_sum_block<T, 1, U, true, SHARED, OPPOSITE, MUL, ADD>(s, heads, vector, y, x);
    }
    for (int64_t next = 0; s.cols >= kPixels && next < s.cols; next += kPixels) {
      const int64_t x = smaller(next, s.cols - kPixels);  // the last block may overlap
      if constexpr (!SHARED) {
        if (s.left <= x && x + kPixels + s.kernel - 1 <= s.right) {
          elsa_sum_block<T, kPixels, U, false, SHARED, OPPOSITE, MUL, ADD>(s, heads, vector, y, x);
          continue;
        }
      }
      elsa_sum_block<T, kPixels, U, true, SHARED, OPPOSITE, MUL, ADD>(s, heads, vector, y, x);
    }
  }
}

template <class T, bool OPPOSITE, int U, bool SHARED>
static inline void elsa_sum_of_kind(const ElsaSum<T>& s, const Heads<T>& heads, int64_t vector) {
  const auto kind = s.mul ? (s.add ? elsa_sum<T, U, SHARED, OPPOSITE, true, true>
                                   : elsa_sum<T, U, SHARED, OPPOSITE, true, false>)
                          : (s.add ? elsa_sum<T, U, SHARED, OPPOSITE, false, true>
                                   : elsa_sum<T, U, SHARED, OPPOSITE, false, false>);
  kind(s, heads, vector);
}

// The same for all channels.
template <class T, bool OPPOSITE>
static void elsa_sums(const ElsaSum<T>& s, const Heads<T>& heads) {
  for (int64_t v = 0; v < heads.vectors;) {
    const bool pair = heads.is_pair(v);
    const auto part = pair                 ? elsa_sum_of_kind<T, OPPOSITE, 2, false>
                      : heads.is_shared(v) ? elsa_sum_of_kind<T, OPPOSITE, 1, true>
                                           : elsa_sum_of_kind<T, OPPOSITE, 1, false>;
    part(s, heads, v);
    v += pair ? 2 : 1;
  }
}

// The sums of the rows [begin, end), tile by tile. begin_at(sample, y, x) sets the pointers of s
// for the tile that begins there. The pixels of a row of a tile are `dilation` apart, so that they
// have columns in common.
template <class T, bool OPPOSITE, class Begin>
MMLOCAL_INLINE void elsa_sum_rows(const Elsa<T>& a, const Heads<T>& heads, ElsaSum<T>& s,
                                  int64_t begin, int64_t end, const Begin& begin_at) {
  const int64_t half = a.kernel / 2, d = a.dilation;
  s.kernel = a.kernel;
  s.mul = a.mul;
  s.add = a.add;
  s.table_col = heads.vectors * kLanes<T>;
  if (OPPOSITE) {
    const int64_t last = (a.kernel * a.kernel - 1) * s.table_col;
    if (s.mul) s.mul += last;
    if (s.add) s.add += last;
    s.table_col = -s.table_col;
  }
  s.table_row = a.kernel * s.table_col;
  for (int64_t row = begin; row < end; row += s.rows) {
    const int64_t b = row / a.height, y = row % a.height;
    s.rows = d > 1 ? 1 : smaller(smaller(kTileRows, end - row), a.height - y);
    s.top = larger(0, half - y / d);
    s.bottom = smaller(s.rows - 1 + a.kernel, half + (a.height - 1 - y) / d + 1);
    for (int64_t x = 0; x < smaller(d, a.width); ++x) {
      const int64_t count = (a.width - x + d - 1) / d;
      for (int64_t first = 0; first < count; first += kTileCols) {
        s.cols = smaller(kTileCols, count - first);
        s.left = larger(0, half - first);
        s.right = smaller(s.cols - 1 + a.kernel, half + count - first);
        begin_at(b, y, x + first * d);
        elsa_sums<T, OPPOSITE>(s, heads);
      }
    }
  }
}
