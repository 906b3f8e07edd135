// The QnA op. With E = exp(score) of a token and R = exp(rel_pos) of a tap, both over a constant
// that cancels,
//
//     out[c, p] = sum_l (1 / Z[l, p]) sum_t (R * tap_weight)[l, t] * (E * value)[l, c, p + t]
//     Z[l, p]   = sum_t R[l, t] * E[l, p + t]
//
// so each token's exponential is taken once, and all that grows with the window are depth-wise
// convolutions of tiles that lie in the cache. The backward pass is made of the same three kinds:
// a convolution, its transpose, and the gradient of its weights.
//
// The constants are those of a whole map (see Qna in kernels.h). A window whose scores all lie so
// far below the map's that Z is below kSmallest is taken on its own, relative to its own maximum:
// `inverse` is -0 there, so that it adds nothing to the sums of the others.

template <class T>
constexpr T kSmallest = T(1) / (int64_t(1) << 60);

// Largest size of the rows that a tile keeps: a part of a core's L2 cache.
constexpr int64_t kTileBytes = 320 * 1024;

template <class T>
struct Sizes {
  int64_t tables, padded;  // tables, and rounded up to whole vectors
  int64_t vectors, mixed;  // vectors of channels, and times queries
  explicit Sizes(const Qna<T>& a)
      : tables(a.queries * a.heads),
        padded(round_up(tables, kLanes<T>)),
        vectors((a.channels + kLanes<T> - 1) / kLanes<T>),
        mixed(vectors * a.queries) {}
};

// How an output map is cut, and the rows of the other map that a tile needs, kept in a ring.
template <class T>
struct Tiling {
  int64_t rows, cols;          // of a tile; whole blocks of pixels
  int64_t row_tiles, col_tiles;
  int64_t ring_rows, ring_cols;

  Tiling(const Qna<T>& a, int64_t height, int64_t width, int64_t ring_rows, int64_t stride,
         int64_t shrink)
      : ring_rows(ring_rows) {
    const Sizes<T> s(a);
    const int64_t bytes = ring_rows * (s.mixed * kLanes<T> + s.padded) * sizeof(T);
    const int64_t step = kPixels * shrink;
    cols = (kTileBytes / bytes - a.kernel) * shrink / stride;
    cols = larger(cols, 2 * kPixels);
    cols = round_up(smaller(smaller(cols, 128), width), step);
    // So small that many threads find work, whatever their number; but each tile computes some of
    // its neighbours' rows again.
    rows = larger(2 * a.kernel, smaller(larger(16, 8 * a.kernel), a.batch * height / 64));
    row_tiles = (height + rows - 1) / rows;
    col_tiles = (width + cols - 1) / cols;
    ring_cols = cols / shrink * stride + a.kernel;
  }
};

template <class T>
static Tiling<T> window_tiling(const Qna<T>& a) {
  return Tiling<T>(a, a.out_height, a.out_width, a.kernel, a.stride, 1);
}

// A token of a map with stride belongs to fewer windows.
template <class T>
static Tiling<T> token_tiling(const Qna<T>& a) {
  return Tiling<T>(a, a.height, a.width, (a.kernel - 1) / a.stride + 1, 1, a.stride);
}

// Hands out parts of the scratch memory; from null it only counts.
template <class T>
struct Scratch {
  T* next;
  int64_t used = 0;

  template <class U = T>
  U* take(int64_t count) {
    U* part = reinterpret_cast<U*>(next ? next + used : nullptr);
    used += round_up(count, 64 / sizeof(T));
    return part;
  }
};

// For each vector of channels of each query, where its tables begin and which one a lane takes.
template <class T>
struct Expansion {
  int64_t* base;
  IntVec<T>* lane;

  Expansion(const Qna<T>& a, const Sizes<T>& s, Scratch<T>& scratch)
      : base(scratch.template take<int64_t>(2 * s.mixed)),
        lane(scratch.template take<IntVec<T>>(s.mixed * kLanes<T>)) {
    if (!base) return;
    const int64_t head_dims = a.channels / a.heads;
    for (int64_t u = 0; u < s.mixed; ++u) {
      const int64_t first = u / a.queries * kLanes<T>;
      base[u] = u % a.queries * a.heads + first / head_dims;
      for (int64_t i = 0; i < kLanes<T>; ++i) {
        const int64_t channel = smaller(first + i, a.channels - 1);
        lane[u][i] = channel / head_dims - first / head_dims;
      }
    }
  }

  // The numbers of the tables (room for a vector behind them), one per channel.
  __attribute__((always_inline)) Vec<T> operator()(const T* tables, int64_t u) const {
    return permute<T>(load(tables + base[u]), lane[u]);
  }
};

// Adds the channels of each head: mixed vectors to tables.
template <class T>
static inline void sum_heads(const Qna<T>& a, const Sizes<T>& s, const T* x, T* tables) {
  constexpr int64_t n = kLanes<T>;
  const int64_t head_dims = a.channels / a.heads;
  for (int64_t t = 0; t < s.padded; ++t) tables[t] = 0;
  if (head_dims < n && (head_dims & (head_dims - 1)) == 0) {
    IntVec<T> lane;
    for (int i = 0; i < n; ++i) lane[i] = i;
    for (int64_t u = 0; u < s.mixed; ++u) {
      Vec<T> v = load(x + u * n);
      for (int64_t step = 1; step < head_dims; step *= 2) v += permute<T>(v, lane ^ typename Types<T>::Int(step));
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

// out[p][u] = sum over rows i, columns j of source[i][j + p][u] * table[i][j][u].
template <class T, int P, int U>
static inline void convolve(
    const T* const* source, int64_t offset, const T* const* table, int64_t table_offset,
    int64_t rows, int64_t cols, int64_t source_col, int64_t table_col, int64_t pixel, T* out,
    int64_t out_step) {
  constexpr int n = kLanes<T>;
  Vec<T> total[P][U] = {};
  for (int64_t i = 0; i < rows; ++i) {
    const T* s = source[i] + offset;
    const T* t = table[i] + table_offset;
    for (int64_t j = 0; j < cols; ++j, s += source_col, t += table_col) {
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
    for (int u = 0; u < U; ++u) store(out + p * out_step + u * n, total[p][u]);
  }
}

// table[j][u] += sum over pixels x of grad[x][u] * source[x + j][u].
template <class T, int J, int U>
static inline void correlate(
    const T* grad, int64_t grad_pixel, const T* source, int64_t source_pixel, int64_t source_col,
    int64_t pixels, T* table, int64_t table_col) {
  constexpr int n = kLanes<T>;
  Vec<T> total[J][U] = {};
  for (int64_t x = 0; x < pixels; ++x) {
    Vec<T> g[U];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) g[u] = load(grad + x * grad_pixel + u * n);
#pragma GCC unroll 4
    for (int j = 0; j < J; ++j) {
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        total[j][u] += g[u] * load(source + x * source_pixel + j * source_col + u * n);
      }
    }
  }
#pragma GCC unroll 4
  for (int j = 0; j < J; ++j) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) {
      T* out = table + j * table_col + u * n;
      store(out, load(out) + total[j][u]);
    }
  }
}

template <class T, int U>
static inline void correlate_row(
    const T* grad, int64_t grad_pixel, const T* source, int64_t source_pixel, int64_t source_col,
    int64_t pixels, T* table, int64_t table_col, int64_t cols) {
  for (int64_t j = 0; j < cols;) {
    const int64_t left = cols - j;
    const auto part = left >= 4 && left != 5 ? correlate<T, 4, U>
                      : left >= 3            ? correlate<T, 3, U>
                      : left == 2            ? correlate<T, 2, U>
                                             : correlate<T, 1, U>;
    part(grad, grad_pixel, source + j * source_col, source_pixel, source_col, pixels,
         table + j * table_col, table_col);
    j += left >= 4 && left != 5 ? 4 : smaller(left, 3);
  }
}

template <class T>
static void qna_peak(const Qna<T>& a, T* peak, int64_t sample, int64_t begin, int64_t end) {
  const Sizes<T> s(a);
  const Vec<T> lowest = broadcast(T(sizeof(T) == 4 ? -__FLT_MAX__ : -__DBL_MAX__));
  for (int64_t t = 0; t < s.padded; t += kLanes<T>) {
    Vec<T> most = load(peak + t), bad{};
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t x = 0; x < a.width; ++x) {
        const T* scores = a.scores.at(sample, y, x);
        const Vec<T> score = load(scores + t, s.tables - t, -kInfinity<T>);
        most = score > most ? score : most;
        // 0, or NaN for NaN and infinity; -inf takes a token out.
        bad += (score < lowest ? lowest : score) * T(0);
      }
    }
    store(peak + t, most + bad);
  }
}

// E of one token.
template <class T>
static inline void exponentials(
    const Qna<T>& a, const Sizes<T>& s, int64_t b, int64_t y, int64_t x, T* out) {
  const T* scores = a.scores.at(b, y, x);
  for (int64_t t = 0; t < s.padded; t += kLanes<T>) {
    const Vec<T> score = load(scores + t, s.tables - t, T(0));
    store(out + t, exp_scaled(score - load(a.shift + b * s.padded + t),
                              load(a.power + b * s.padded + t)));
  }
}

// Attention of one table to one window, relative to the maximum of the window; false if there is
// no token in it.
template <class T>
static bool exact_attention(
    const Qna<T>& a, int64_t b, int64_t oy, int64_t ox, int64_t table, T* attn) {
  const int64_t k = a.kernel, y0 = oy * a.stride - a.padding, x0 = ox * a.stride - a.padding;
  T peak = -kInfinity<T>;
  for (int64_t i = 0; i < k; ++i) {
    for (int64_t j = 0; j < k; ++j) {
      const bool inside = y0 + i >= 0 && y0 + i < a.height && x0 + j >= 0 && x0 + j < a.width;
      const T score = inside ? a.scores.at(b, y0 + i, x0 + j)[table] : -kInfinity<T>;
      attn[i * k + j] = score;
      peak = score > peak ? score : peak;
    }
  }
  if (peak == -kInfinity<T>) return false;
  T most = -kInfinity<T>;
  for (int64_t t = 0; t < k * k; ++t) {
    // In this order: added to a large score, the position would lose its digits.
    attn[t] -= peak;
    if (a.rel_pos) attn[t] += a.rel_pos[table * k * k + t];
    most = attn[t] > most ? attn[t] : most;
  }
  if (most == -kInfinity<T>) return false;
  T total = 0;
  for (int64_t t = 0; t < k * k; ++t) {
    attn[t] = sizeof(T) == 4 ? T(__builtin_expf(attn[t] - most)) : T(__builtin_exp(attn[t] - most));
    total += attn[t];
  }
  for (int64_t t = 0; t < k * k; ++t) attn[t] /= total;
  return true;
}

template <class T>
MMLOCAL_INLINE bool is_exact(T inverse) {
  return inverse == 0 && __builtin_signbit(inverse);
}

// For one table and one window that is taken exactly: attention, product of gradient and value per
// tap, and its mean.
template <class T>
static T exact_products(
    const Qna<T>& a, int64_t b, int64_t oy, int64_t ox, int64_t table, T* attn, T* dots) {
  exact_attention(a, b, oy, ox, table, attn);
  const int64_t k = a.kernel, head_dims = a.channels / a.heads;
  const int64_t first = table % a.heads * head_dims;
  const T* grad = a.grad.at(b, oy, ox) + table / a.heads * a.grad_query + first;
  T mean = 0;
  for (int64_t t = 0; t < k * k; ++t) {
    const int64_t y = oy * a.stride - a.padding + t / k, x = ox * a.stride - a.padding + t % k;
    dots[t] = 0;
    if (y < 0 || y >= a.height || x < 0 || x >= a.width) continue;
    const T* value = a.value.at(b, y, x) + first;
    for (int64_t c = 0; c < head_dims; ++c) dots[t] += grad[c] * value[c];
    mean += attn[t] * (a.tap_weight ? a.tap_weight[table * k * k + t] : T(1)) * dots[t];
  }
  return mean;
}

// Tiles of windows: the forward pass, and the part of the backward pass that runs over windows.
template <class T>
struct WindowTile {
  const Qna<T>& a;
  const Sizes<T> s;
  const Tiling<T> tiling;
  Scratch<T> scratch;
  const Expansion<T> expand;
  T *ring_exp, *ring_value;  // (kernel, ring_cols, padded), (kernel, vectors, ring_cols, queries, n)
  const T **exp_rows, **value_rows, **rel_rows, **mix_rows;
  T *inverse, *sums;    // (cols, padded), (cols, mixed, n)
  T *grads, *mean;      // (vectors, cols, queries, n), (cols, padded)
  T *products, *attn, *dots;

  WindowTile(const Qna<T>& a, T* memory, bool backward)
      : a(a), s(a), tiling(window_tiling(a)), scratch{memory}, expand(a, s, scratch) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel, pointers = k * sizeof(void*) / sizeof(T);
    ring_exp = scratch.take(k * tiling.ring_cols * s.padded + n);
    ring_value = scratch.take(k * tiling.ring_cols * s.mixed * n);
    exp_rows = scratch.template take<const T*>(pointers);
    value_rows = scratch.template take<const T*>(pointers);
    rel_rows = scratch.template take<const T*>(pointers);
    mix_rows = scratch.template take<const T*>(pointers);
    inverse = scratch.take(tiling.cols * s.padded + n);
    sums = scratch.take(tiling.cols * s.mixed * n);
    attn = scratch.take(k * k);
    if (!backward) return;
    grads = scratch.take(tiling.cols * s.mixed * n);
    mean = scratch.take(tiling.cols * s.padded);
    products = scratch.take(s.mixed * n);
    dots = scratch.take(k * k);
  }

  int64_t exp_row() const { return tiling.ring_cols * s.padded; }
  int64_t value_row() const { return tiling.ring_cols * s.mixed * kLanes<T>; }

  // E and E * value of one row of tokens, 0 outside the map.
  void load_row(int64_t b, int64_t y, int64_t x0) {
    constexpr int64_t n = kLanes<T>;
    const int64_t slot = (y + a.padding) % a.kernel, queries = a.queries;
    T* exps = ring_exp + slot * exp_row();
    T* values = ring_value + slot * value_row();
    if (y < 0 || y >= a.height) {
      __builtin_memset(exps, 0, exp_row() * sizeof(T));
      __builtin_memset(values, 0, value_row() * sizeof(T));
      return;
    }
    for (int64_t x = larger(0, x0); x < smaller(a.width, x0 + tiling.ring_cols); ++x) {
      T* e = exps + (x - x0) * s.padded;
      exponentials(a, s, b, y, x, e);
      const T* value = a.value.at(b, y, x);
      T* out = values + (x - x0) * queries * n;
      for (int64_t g = 0; g < s.vectors; ++g, out += tiling.ring_cols * queries * n) {
        const Vec<T> v = load(value + g * n, a.channels - g * n, T(0));
        for (int64_t l = 0; l < queries; ++l) store(out + l * n, v * expand(e, g * queries + l));
      }
    }
  }

  // 1 / Z of a row of windows; whether some are to be taken exactly.
  bool load_inverse(int64_t b, int64_t oy, int64_t ox0, int64_t count) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel;
    IntVec<T> small{};
    for (int64_t x = 0; x < count; x += kPixels) {
      for (int64_t t = 0; t < s.padded; t += n) {
        T* out = inverse + x * s.padded + t;
        convolve<T, kPixels, 1>(exp_rows, x * a.stride * s.padded + t, rel_rows, t, k, k, s.padded,
                                s.padded, a.stride * s.padded, out, s.padded);
        for (int p = 0; p < kPixels; ++p) {
          const Vec<T> z = load(out + p * s.padded);
          const IntVec<T> fits = z >= broadcast(kSmallest<T>);
          small |= ~fits;
          store(out + p * s.padded, fits ? T(1) / z : Vec<T>{});
        }
      }
    }
    T any = 0;
    for (int i = 0; i < n; ++i) any = small[i] ? T(1) : any;
    if (any == 0) return false;
    bool found = false;
    for (int64_t x = 0; x < count; ++x) {
      for (int64_t table = 0; table < s.tables; ++table) {
        T& z = inverse[x * s.padded + table];
        if (z == 0 && exact_attention(a, b, oy, ox0 + x, table, attn)) {
          z = -T(0);
          found = true;
        }
      }
    }
    return found;
  }

  // sums = E * value convolved, for a row of windows. Pixels innermost: neighbouring blocks share
  // tokens, which are still in the L1 cache.
  void load_sums(int64_t count) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel, queries = a.queries, token = queries * n;
    for (int64_t g = 0; g < s.vectors; ++g) {
      for (int64_t l = 0; l < queries;) {
        const int64_t u = g * queries + l;
        const bool two = l + 1 < queries;
        const auto part = two ? convolve<T, kPixels, 2> : convolve<T, kPixels, 1>;
        for (int64_t x = 0; x < count; x += kPixels) {
          part(value_rows, (g * tiling.ring_cols + x * a.stride) * token + l * n, mix_rows, u * n,
               k, k, token, s.mixed * n, a.stride * token, sums + (x * s.mixed + u) * n,
               s.mixed * n);
        }
        l += two ? 2 : 1;
      }
    }
  }

  void write_out(int64_t b, int64_t oy, int64_t ox, const T* inverse, const T* sums) {
    constexpr int64_t n = kLanes<T>;
    T* out = a.out.at(b, oy, ox);
    for (int64_t g = 0; g < s.vectors; ++g) {
      Vec<T> total{};
      for (int64_t l = 0; l < a.queries; ++l) {
        const int64_t u = g * a.queries + l;
        total += load(sums + u * n) * expand(inverse, u);
        if (a.sum_queries && l + 1 < a.queries) continue;
        store(out + (a.sum_queries ? 0 : l * a.out_query) + g * n, total, a.channels - g * n);
        total = Vec<T>{};
      }
    }
  }

  void add_exact(int64_t b, int64_t oy, int64_t ox, const T* inverse) {
    const int64_t k = a.kernel, head_dims = a.channels / a.heads;
    for (int64_t table = 0; table < s.tables; ++table) {
      if (!is_exact(inverse[table])) continue;
      exact_attention(a, b, oy, ox, table, attn);
      const int64_t first = table % a.heads * head_dims;
      T* out = a.out.at(b, oy, ox) + table / a.heads * (a.sum_queries ? 0 : a.out_query) + first;
      for (int64_t t = 0; t < k * k; ++t) {
        const int64_t y = oy * a.stride - a.padding + t / k, x = ox * a.stride - a.padding + t % k;
        if (y < 0 || y >= a.height || x < 0 || x >= a.width || attn[t] == 0) continue;
        const T weight = attn[t] * (a.tap_weight ? a.tap_weight[table * k * k + t] : T(1));
        const T* value = a.value.at(b, y, x) + first;
        for (int64_t c = 0; c < head_dims; ++c) out[c] += weight * value[c];
      }
    }
  }

  // inverse and mean of a window, its gradient over Z, and the gradients of the tables.
  void write_grads(int64_t b, int64_t oy, int64_t ox, int64_t x, const T* inverse, const T* sums) {
    constexpr int64_t n = kLanes<T>;
    const T* grad = a.grad.at(b, oy, ox);
    for (int64_t g = 0; g < s.vectors; ++g) {
      for (int64_t l = 0; l < a.queries; ++l) {
        const int64_t u = g * a.queries + l;
        const Vec<T> scaled = load(grad + l * a.grad_query + g * n, a.channels - g * n, T(0)) *
                              expand(inverse, u);
        store(grads + ((g * tiling.cols + x) * a.queries + l) * n, scaled);
        store(products + u * n, scaled * load(sums + u * n));
      }
    }
    T* own = mean + x * s.padded;
    sum_heads(a, s, products, own);
    for (int64_t t = 0; t < s.tables; ++t) own[t] *= inverse[t];
    __builtin_memcpy(a.mean.at(b, oy, ox), own, s.padded * sizeof(T));
    __builtin_memcpy(a.inverse.at(b, oy, ox), inverse, s.padded * sizeof(T));
  }

  void add_exact_tables(int64_t b, int64_t oy, int64_t ox, const T* inverse, int64_t part) {
    const int64_t taps = a.kernel * a.kernel;
    for (int64_t table = 0; table < s.tables; ++table) {
      if (!is_exact(inverse[table])) continue;
      const T mean = exact_products(a, b, oy, ox, table, attn, dots);
      const int64_t first = (part * s.tables + table) * taps;
      for (int64_t t = 0; t < taps; ++t) {
        const T weight = a.tap_weight ? a.tap_weight[table * taps + t] : T(1);
        a.sum_exact_mix[first + t] += attn[t] * dots[t];
        a.sum_exact_rel[first + t] += attn[t] * (weight * dots[t] - mean);
      }
    }
  }

  void add_tables(int64_t count, int64_t part) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel, queries = a.queries, token = queries * n;
    for (int64_t i = 0; i < k; ++i) {
      T* rel = a.sum_rel + (part * k + i) * k * s.padded;
      for (int64_t t = 0; t < s.padded; t += n) {
        correlate_row<T, 1>(mean + t, s.padded, exp_rows[i] + t, a.stride * s.padded, s.padded,
                            count, rel + t, s.padded, k);
      }
      T* mix = a.sum_mix + (part * k + i) * k * s.mixed * n;
      for (int64_t g = 0; g < s.vectors; ++g) {
        for (int64_t l = 0; l < queries;) {
          const bool two = l + 1 < queries;
          const auto row = two ? correlate_row<T, 2> : correlate_row<T, 1>;
          row(grads + g * tiling.cols * token + l * n, token,
              value_rows[i] + g * tiling.ring_cols * token + l * n, a.stride * token, token, count,
              mix + (g * queries + l) * n, s.mixed * n, k);
          l += two ? 2 : 1;
        }
      }
    }
  }

  template <bool BACKWARD>
  void run(int64_t task, int64_t part) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel;
    const int64_t ox0 = task % tiling.col_tiles * tiling.cols;
    const int64_t oy0 = task / tiling.col_tiles % tiling.row_tiles * tiling.rows;
    const int64_t b = task / tiling.col_tiles / tiling.row_tiles;
    const int64_t count = smaller(tiling.cols, a.out_width - ox0);
    const int64_t x0 = ox0 * a.stride - a.padding;
    __builtin_memset(ring_exp, 0, (k * exp_row() + n) * sizeof(T));
    __builtin_memset(ring_value, 0, k * value_row() * sizeof(T));
    for (int64_t i = 0; i < k; ++i) {
      rel_rows[i] = a.rel + i * k * s.padded;
      mix_rows[i] = a.mix + i * k * s.mixed * n;
    }
    int64_t next = oy0 * a.stride - a.padding;
    for (int64_t oy = oy0; oy < smaller(oy0 + tiling.rows, a.out_height); ++oy) {
      const int64_t first = oy * a.stride - a.padding;
      for (int64_t y = larger(next, first); y < first + k; ++y) load_row(b, y, x0);
      next = first + k;
      for (int64_t i = 0; i < k; ++i) {
        const int64_t slot = (first + i + a.padding) % k;
        exp_rows[i] = ring_exp + slot * exp_row();
        value_rows[i] = ring_value + slot * value_row();
      }
      const bool exact = load_inverse(b, oy, ox0, count);
      load_sums(count);
      for (int64_t x = 0; x < count; ++x) {
        const T* own_inverse = inverse + x * s.padded;
        const T* own_sums = sums + x * s.mixed * n;
        if (BACKWARD) {
          write_grads(b, oy, ox0 + x, x, own_inverse, own_sums);
        } else {
          write_out(b, oy, ox0 + x, own_inverse, own_sums);
        }
      }
      // Tiles beside each other share the row, and all write the same.
      if (BACKWARD && exact) __atomic_store_n(a.exact + b * a.out_height + oy, 1, __ATOMIC_RELAXED);
      if (BACKWARD && a.need_tables) add_tables(count, part);
      for (int64_t x = 0; exact && x < count; ++x) {
        if (BACKWARD) {
          if (a.need_tables) add_exact_tables(b, oy, ox0 + x, inverse + x * s.padded, part);
        } else {
          add_exact(b, oy, ox0 + x, inverse + x * s.padded);
        }
      }
    }
  }
};

// Tiles of tokens: each token gathers from the windows that contain it.
template <class T>
struct TokenTile {
  const Qna<T>& a;
  const Sizes<T> s;
  const Tiling<T> tiling;
  Scratch<T> scratch;
  const Expansion<T> expand;
  T *ring_grad, *ring_mean;  // (ring_rows, vectors, ring_cols, queries, n), (ring_rows, .., padded)
  const T **grad_rows, **mean_rows, **rel_rows, **mix_rows;
  T *sums, *means;  // (cols, mixed, n), (cols, padded)
  T *exps, *products, *attn, *dots;

  TokenTile(const Qna<T>& a, T* memory)
      : a(a), s(a), tiling(token_tiling(a)), scratch{memory}, expand(a, s, scratch) {
    constexpr int64_t n = kLanes<T>;
    const int64_t pointers = a.kernel * sizeof(void*) / sizeof(T);
    ring_grad = scratch.take(tiling.ring_rows * grad_row());
    ring_mean = scratch.take(tiling.ring_rows * mean_row());
    grad_rows = scratch.template take<const T*>(pointers);
    mean_rows = scratch.template take<const T*>(pointers);
    rel_rows = scratch.template take<const T*>(pointers);
    mix_rows = scratch.template take<const T*>(pointers);
    sums = scratch.take(tiling.cols * s.mixed * n);
    means = scratch.take(tiling.cols * s.padded);
    exps = scratch.take(s.padded + n);
    products = scratch.take(s.mixed * n);
    attn = scratch.take(a.kernel * a.kernel);
    dots = scratch.take(a.kernel * a.kernel);
  }

  int64_t grad_row() const { return tiling.ring_cols * s.mixed * kLanes<T>; }
  int64_t mean_row() const { return tiling.ring_cols * s.padded; }

  // Gradient over Z, and mean, of one row of windows; 0 outside the map.
  void load_row(int64_t b, int64_t oy, int64_t ox0) {
    constexpr int64_t n = kLanes<T>;
    const int64_t slot = (oy + a.kernel) % tiling.ring_rows, token = a.queries * n;
    T* grads = ring_grad + slot * grad_row();
    T* means = ring_mean + slot * mean_row();
    if (oy < 0 || oy >= a.out_height) {
      __builtin_memset(grads, 0, grad_row() * sizeof(T));
      __builtin_memset(means, 0, mean_row() * sizeof(T));
      return;
    }
    for (int64_t ox = larger(0, ox0); ox < smaller(a.out_width, ox0 + tiling.ring_cols); ++ox) {
      const T* inverse = a.inverse.at(b, oy, ox);
      const T* grad = a.grad.at(b, oy, ox);
      __builtin_memcpy(means + (ox - ox0) * s.padded, a.mean.at(b, oy, ox), s.padded * sizeof(T));
      for (int64_t g = 0; g < s.vectors; ++g) {
        for (int64_t l = 0; l < a.queries; ++l) {
          const Vec<T> v = load(grad + l * a.grad_query + g * n, a.channels - g * n, T(0));
          store(grads + (g * tiling.ring_cols + ox - ox0) * token + l * n,
                v * expand(inverse, g * a.queries + l));
        }
      }
    }
  }

  void write_grads(int64_t b, int64_t y, int64_t x, T* sums, const T* means) {
    constexpr int64_t n = kLanes<T>;
    exponentials(a, s, b, y, x, exps);
    const T* value = a.value.at(b, y, x);
    for (int64_t g = 0; g < s.vectors; ++g) {
      const Vec<T> v = load(value + g * n, a.channels - g * n, T(0));
      Vec<T> total{};
      for (int64_t l = 0; l < a.queries; ++l) {
        const int64_t u = g * a.queries + l;
        const Vec<T> sum = load(sums + u * n);
        total += sum * expand(exps, u);
        store(products + u * n, sum * v);
      }
      if (a.need_value) store(a.grad_value.at(b, y, x) + g * n, total, a.channels - g * n);
    }
    if (!a.need_scores) return;
    T* dots = sums;  // no longer needed
    sum_heads(a, s, products, dots);
    for (int64_t t = 0; t < s.padded; t += n) {
      const Vec<T> grad = (load(dots + t) - load(means + t)) * load(exps + t);
      store(a.grad_scores.at(b, y, x) + t, grad, s.tables - t);
    }
  }

  // What the tokens [x0, x1) of row y get from a window that is taken exactly.
  void add_exact(int64_t b, int64_t oy, int64_t ox, int64_t y, int64_t x0, int64_t x1) {
    const int64_t k = a.kernel, head_dims = a.channels / a.heads;
    const T* inverse = a.inverse.at(b, oy, ox);
    for (int64_t table = 0; table < s.tables; ++table) {
      if (!is_exact(inverse[table])) continue;
      const T mean = exact_products(a, b, oy, ox, table, attn, dots);
      const int64_t first = table % a.heads * head_dims;
      const T* grad = a.grad.at(b, oy, ox) + table / a.heads * a.grad_query + first;
      for (int64_t j = 0; j < k; ++j) {
        const int64_t x = ox * a.stride - a.padding + j;
        if (x < x0 || x >= x1) continue;
        const int64_t t = (y - oy * a.stride + a.padding) * k + j;
        const T weight = a.tap_weight ? a.tap_weight[table * k * k + t] : T(1);
        if (a.need_scores) {
          a.grad_scores.at(b, y, x)[table] += attn[t] * (weight * dots[t] - mean);
        }
        for (int64_t c = 0; a.need_value && c < head_dims; ++c) {
          a.grad_value.at(b, y, x)[first + c] += attn[t] * weight * grad[c];
        }
      }
    }
  }

  void run(int64_t task) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel, stride = a.stride, queries = a.queries, token = queries * n;
    const int64_t x0 = task % tiling.col_tiles * tiling.cols;
    const int64_t y0 = task / tiling.col_tiles % tiling.row_tiles * tiling.rows;
    const int64_t b = task / tiling.col_tiles / tiling.row_tiles;
    const int64_t x1 = smaller(x0 + tiling.cols, a.width);
    // Windows [first, last] contain a token: those that begin at most kernel - 1 before it.
    const int64_t ox0 = ceil_div(x0 + a.padding - k + 1, stride);
    __builtin_memset(ring_grad, 0, tiling.ring_rows * grad_row() * sizeof(T));
    __builtin_memset(ring_mean, 0, tiling.ring_rows * mean_row() * sizeof(T));
    int64_t next = ceil_div(y0 + a.padding - k + 1, stride);
    for (int64_t y = y0; y < smaller(y0 + tiling.rows, a.height); ++y) {
      const int64_t first = ceil_div(y + a.padding - k + 1, stride);
      const int64_t last = (y + a.padding) / stride, rows = last - first + 1;
      for (; next <= last; ++next) load_row(b, next, ox0);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t slot = (first + i + k) % tiling.ring_rows;
        const int64_t tap = y + a.padding - (first + i) * stride;
        grad_rows[i] = ring_grad + slot * grad_row();
        mean_rows[i] = ring_mean + slot * mean_row();
        rel_rows[i] = a.rel + tap * k * s.padded;
        mix_rows[i] = a.mix + tap * k * s.mixed * n;
      }
      // Tokens of one phase have the same taps; their windows are neighbours.
      for (int64_t phase = 0; phase < smaller(stride, x1 - x0); ++phase) {
        const int64_t tap = (x0 + phase + a.padding) % stride;
        const int64_t cols = tap < k ? (k - 1 - tap) / stride + 1 : 0;
        const int64_t source = (x0 + phase + a.padding - tap) / stride - ox0;
        for (int64_t x = phase; x < x1 - x0; x += kPixels * stride) {
          for (int64_t t = 0; t < s.padded; t += n) {
            convolve<T, kPixels, 1>(mean_rows, (source + x / stride) * s.padded + t, rel_rows,
                                    tap * s.padded + t, rows, cols, -s.padded, stride * s.padded,
                                    s.padded, means + x * s.padded + t, stride * s.padded);
          }
        }
        for (int64_t g = 0; g < s.vectors; ++g) {
          for (int64_t l = 0; l < queries;) {
            const int64_t u = g * queries + l;
            const bool two = l + 1 < queries;
            const auto part = two ? convolve<T, kPixels, 2> : convolve<T, kPixels, 1>;
            for (int64_t x = phase; x < x1 - x0; x += kPixels * stride) {
              const int64_t at = g * tiling.ring_cols + source + x / stride;
              part(grad_rows, at * token + l * n, mix_rows, (tap * s.mixed + u) * n, rows, cols,
                   -token, stride * s.mixed * n, token, sums + (x * s.mixed + u) * n,
                   stride * s.mixed * n);
            }
            l += two ? 2 : 1;
          }
        }
      }
      for (int64_t x = x0; x < x1; ++x) {
        write_grads(b, y, x, sums + (x - x0) * s.mixed * n, means + (x - x0) * s.padded);
      }
      for (int64_t oy = larger(0, first); oy <= smaller(last, a.out_height - 1); ++oy) {
        if (!a.exact[b * a.out_height + oy]) continue;
        const int64_t end = smaller(a.out_width, (x1 - 1 + a.padding) / stride + 1);
        for (int64_t ox = larger(0, ox0); ox < end; ++ox) add_exact(b, oy, ox, y, x0, x1);
      }
    }
  }
};

template <class T>
static int64_t qna_window_tasks(const Qna<T>& a) {
  const Tiling<T> tiling = window_tiling(a);
  return a.batch * tiling.row_tiles * tiling.col_tiles;
}

template <class T>
static int64_t qna_token_tasks(const Qna<T>& a) {
  const Tiling<T> tiling = token_tiling(a);
  return a.batch * tiling.row_tiles * tiling.col_tiles;
}

template <class T>
static int64_t qna_window_scratch(const Qna<T>& a) {
  return WindowTile<T>(a, nullptr, true).scratch.used;
}

template <class T>
static int64_t qna_token_scratch(const Qna<T>& a) {
  return TokenTile<T>(a, nullptr).scratch.used;
}

template <class T>
static void qna_forward(const Qna<T>& a, T* scratch, int64_t begin, int64_t end) {
  WindowTile<T> tile(a, scratch, false);
  for (int64_t task = begin; task < end; ++task) tile.template run<false>(task, 0);
}

template <class T>
static void qna_backward_windows(
    const Qna<T>& a, T* scratch, int64_t part, int64_t begin, int64_t end) {
  WindowTile<T> tile(a, scratch, true);
  for (int64_t task = begin; task < end; ++task) tile.template run<true>(task, part);
}

template <class T>
static void qna_backward_tokens(const Qna<T>& a, T* scratch, int64_t begin, int64_t end) {
  TokenTile<T> tile(a, scratch);
  for (int64_t task = begin; task < end; ++task) tile.run(task);
}
