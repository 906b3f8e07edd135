// QnA: tiles of windows. The forward pass and the first part of the backward pass build on them.

// A tile goes down the map row by row. For the tokens that its row of windows reads, it keeps E and
// E * value in a ring of `kernel` rows.
template <class T>
struct WindowTile {
  const Qna<T>& a;
  const Sizes<T> s;
  const Tiling<T> tiling;
  Scratch<T> scratch;
  const Heads<T> heads;
  T* ring_exp;    // (kernel, ring_cols, padded)
  T* ring_value;  // (kernel, vectors, ring_cols, queries, n)
  const T **exp_rows, **value_rows, **rel_rows, **mix_rows;  // (kernel)
  T* inverse;                                                // (cols, padded)
  T* sums;                                                   // (cols, mixed, n)
  uint8_t* exact;                                            // (cols, tables)
  T* attn;                                                   // (kernel^2)

  WindowTile(const Qna<T>& a, T* memory)
      : a(a),
        s(a),
        tiling(window_tiling(a)),
        scratch{memory},
        heads(a.heads, a.channels / a.heads, scratch) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel;
    ring_exp = scratch.take(k * exp_row() + n);
    ring_value = scratch.take(k * value_row());
    exp_rows = scratch.template take<const T*>(k);
    value_rows = scratch.template take<const T*>(k);
    rel_rows = scratch.template take<const T*>(k);
    mix_rows = scratch.template take<const T*>(k);
    inverse = scratch.take(tiling.cols * s.padded + n);
    sums = scratch.take(tiling.cols * s.mixed * n);
    exact = scratch.template take<uint8_t>(tiling.cols * s.tables);
    attn = scratch.take(k * k);
  }

  int64_t exp_row() const { return tiling.ring_cols * s.padded; }
  int64_t value_row() const { return tiling.ring_cols * s.mixed * kLanes<T>; }

  // Loads E and E * value of one row of tokens. Both are 0 outside the map.
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
        for (int64_t l = 0; l < queries; ++l) store(out + l * n, v * expand(a, heads, e, g, l));
      }
    }
  }

  // Computes 1 / Z of a row of windows, and flags those to take exactly. Returns whether there are
  // any.
  bool load_inverse(int64_t b, int64_t oy, int64_t ox0, int64_t count) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel;
    Convolution<T> c{};
    c.source = exp_rows;
    c.table = rel_rows;
    c.rows = c.cols = k;
    c.source_col = c.table_col = c.out_pixel = s.padded;
    c.source_pixel = a.stride * s.padded;
    IntVec<T> small{};
    for (int64_t x = 0; x < count; x += kPixels) {
      for (int64_t t = 0; t < s.padded; t += n) {
        T* out = inverse + x * s.padded + t;
        convolve<T, kPixels, 1>(c, x * c.source_pixel + t, t, out);
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
        const bool own =
            inverse[x * s.padded + table] == 0 && exact_attention(a, b, oy, ox0 + x, table, attn);
        exact[x * s.tables + table] = own;
        found |= own;
      }
    }
    return found;
  }

  // Convolves E * value to `sums`, for a row of windows. The innermost loop is over pixels, because
  // neighbouring blocks share tokens that are still in the L1 cache.
  void load_sums(int64_t count) {
    constexpr int64_t n = kLanes<T>;
    const int64_t queries = a.queries, token = queries * n;
    Convolution<T> c{};
    c.source = value_rows;
    c.table = mix_rows;
    c.rows = c.cols = a.kernel;
    c.source_col = token;
    c.table_col = c.out_pixel = s.mixed * n;
    c.source_pixel = a.stride * token;
    for (int64_t g = 0; g < s.vectors; ++g) {
      for (int64_t l = 0; l < queries;) {
        const int64_t u = g * queries + l;
        const bool two = l + 1 < queries;
        const auto part = two ? convolve<T, kPixels, 2> : convolve<T, kPixels, 1>;
        for (int64_t x = 0; x < count; x += kPixels) {
          part(c, (g * tiling.ring_cols + x * a.stride) * token + l * n, u * n,
               sums + (x * s.mixed + u) * n);
        }
        l += two ? 2 : 1;
      }
    }
  }

  // Calls use(b, oy, ox0, count, any_exact) for each row of `count` windows of a tile.
  template <class Use>
  void over_rows(int64_t task, const Use& use) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel;
    const Tile<T> tile(tiling, task);
    const int64_t count = smaller(tiling.cols, a.out_width - tile.x);
    __builtin_memset(ring_exp, 0, (k * exp_row() + n) * sizeof(T));
    __builtin_memset(ring_value, 0, k * value_row() * sizeof(T));
    for (int64_t i = 0; i < k; ++i) {
      rel_rows[i] = a.rel + i * k * s.padded;
      mix_rows[i] = a.mix + i * k * s.mixed * n;
    }
    int64_t next = tile.y * a.stride - a.padding;
    for (int64_t oy = tile.y; oy < smaller(tile.y + tiling.rows, a.out_height); ++oy) {
      const int64_t first = oy * a.stride - a.padding;
      for (int64_t y = larger(next, first); y < first + k; ++y) {
        load_row(tile.b, y, tile.x * a.stride - a.padding);
      }
      next = first + k;
      for (int64_t i = 0; i < k; ++i) {
        const int64_t slot = (first + i + a.padding) % k;
        exp_rows[i] = ring_exp + slot * exp_row();
        value_rows[i] = ring_value + slot * value_row();
      }
      const bool any_exact = load_inverse(tile.b, oy, tile.x, count);
      load_sums(count);
      use(tile.b, oy, tile.x, count, any_exact);
    }
  }
};

template <class T>
static int64_t qna_window_tasks(const Qna<T>& a) {
  return window_tiling(a).tiles(a);
}
