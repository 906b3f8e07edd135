// QnA: tiles of windows. The forward pass and the first part of the backward pass build on them.

// A tile goes down the map row by row. For the tokens that its row of windows reads, it keeps E and
// E * value in a ring of `kernel` rows.
template <class T>
struct WindowTile {
  const QnaCall<T>& a;
  const Sizes<T> s;
  const Tiling<T> tiling;
  Scratch<T> scratch;
  const Heads<T> heads;
  T* ring_exp;    // (kernel, ring_cols, padded)
  T* ring_value;  // (kernel, vectors, ring_cols, queries, n)
  // The rows of tokens in the map that a row of windows reads, and their taps in the tables.
  const T **exp_rows, **value_rows, **rel_rows, **mix_rows;  // (kernel)
  int64_t rows;  // how many of those rows lie in the map
  T* inverse;    // (cols, padded), and room for a vector
  T* attn;       // (kernel^2)

  WindowTile(const QnaCall<T>& a, T* memory)
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
    attn = scratch.take(k * k);
  }

  int64_t exp_row() const { return tiling.ring_cols * s.padded; }
  int64_t value_row() const { return tiling.ring_cols * s.mixed * kLanes<T>; }

  // Fills the columns of a tile that lie outside the map with 0.
  void clear_border(int64_t x0) {
    const int64_t token = a.queries * kLanes<T>;
    for (int64_t i = 0; i < a.kernel; ++i) {
      tiling.clear_border(ring_exp + i * exp_row(), s.padded, x0, a.width);
      for (int64_t g = 0; g < s.vectors; ++g) {
        T* row = ring_value + i * value_row() + g * tiling.ring_cols * token;
        tiling.clear_border(row, token, x0, a.width);
      }
    }
  }

  // Loads E and E * value of one row of tokens.
  void load_row(int64_t b, int64_t y, int64_t x0) {
    constexpr int64_t n = kLanes<T>;
    const int64_t slot = y % a.kernel, queries = a.queries;
    T* exps = ring_exp + slot * exp_row();
    T* values = ring_value + slot * value_row();
    for (int64_t x = larger(0, x0); x < smaller(a.width, x0 + tiling.ring_cols); ++x) {
      T* e = exps + (x - x0) * s.padded;
      exponentials(a, s, b, y, x, e);
      const T* value = a.value.at(b, y, x);
      T* out = values + (x - x0) * queries * n;
      for (int64_t g = 0; g < s.vectors; ++g, out += tiling.ring_cols * queries * n) {
        const Vec<T> v = load(value + g * n, a.channels - g * n, T(0));
        const Expand<T> expand(a, heads, g);
        for (int64_t l = 0; l < queries; ++l) store(out + l * n, v * expand(e, l));
      }
    }
  }

  // Computes 1 / Z of a row of windows. Returns whether some are 0, which are taken exactly.
  bool load_inverse(int64_t count) {
    constexpr int64_t n = kLanes<T>;
    Convolution<T> c{};
    c.source = exp_rows;
    c.table = rel_rows;
    c.rows = rows;
    c.cols = a.kernel;
    c.source_col = c.table_col = c.out_pixel = s.padded;
    c.source_pixel = a.stride * s.padded;
    IntVec<T> small{};
    c.pixels = tiling.pixels;
    for (int64_t x = 0; x < count; x += c.pixels) {
      for (int64_t i = 0; i < s.padded; i += n) {
        const int64_t t = s.whole(i);
        T* out = inverse + x * s.padded + t;
        convolve<T, 1>(c, x * c.source_pixel + t, t, out);
        for (int64_t p = 0; p < smaller(c.pixels, count - x); ++p) {
          const Vec<T> z = load(out + p * s.padded);
          const IntVec<T> fits = z >= broadcast(kSmallest<T>);
          small |= ~fits;
          store(out + p * s.padded, fits ? T(1) / z : Vec<T>{});
        }
      }
    }
    bool any = false;
    for (int i = 0; i < n; ++i) any |= small[i] != 0;
    return any;
  }

  // Describes the convolution of E * value.
  Convolution<T> of_values() const {
    const int64_t token = a.queries * kLanes<T>;
    Convolution<T> c{};
    c.source = value_rows;
    c.table = mix_rows;
    c.rows = rows;
    c.cols = a.kernel;
    c.source_col = c.table_col = token;
    c.source_pixel = a.stride * token;
    c.pixels = tiling.pixels;
    return c;
  }

  // Where the values of a pixel begin in a row of the ring.
  int64_t value_offset(int64_t vector, int64_t query, int64_t x) const {
    return ((vector * tiling.ring_cols + x * a.stride) * a.queries + query) * kLanes<T>;
  }

  // Calls use(b, oy, ox0, count, any_exact) for each row of `count` windows of a tile.
  template <class Use>
  void over_rows(int64_t task, const Use& use) {
    const int64_t k = a.kernel;
    const Tile<T> tile(tiling, task);
    const int64_t x0 = tile.x * a.stride - a.padding;
    const int64_t count = smaller(tiling.cols, a.out_width - tile.x);
    clear_border(x0);
    int64_t next = 0;
    for (int64_t oy = tile.y; oy < smaller(tile.y + tiling.rows, a.out_height); ++oy) {
      const int64_t top = oy * a.stride - a.padding;
      const int64_t first = larger(0, top), last = smaller(a.height, top + k);
      rows = last - first;
      for (int64_t y = larger(next, first); y < last; ++y) load_row(tile.b, y, x0);
      next = last;
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t slot = (first + i) % k, tap = (first + i - top) * k;
        exp_rows[i] = ring_exp + slot * exp_row();
        value_rows[i] = ring_value + slot * value_row();
        rel_rows[i] = a.rel + tap * s.padded;
        mix_rows[i] = a.mix + tap * a.queries * kLanes<T>;
      }
      const bool any_exact = load_inverse(count);
      use(tile.b, oy, tile.x, count, any_exact);
    }
  }
};

template <class T>
static int64_t qna_window_tasks(const QnaCall<T>& a) {
  return window_tiling(a).tiles(a);
}
