// QnA: the forward pass.

template <class T>
struct ForwardTile : WindowTile<T> {
  using Base = WindowTile<T>;
  using Base::a;
  using Base::s;

  T* block;  // (pixels, 2, n)

  ForwardTile(const QnaCall<T>& a, T* memory) : Base(a, memory) {
    block = this->scratch.take(this->tiling.pixels * 2 * kLanes<T>);
  }

  // Writes a row of windows, for one vector of channels and the queries [l, l + U).
  template <int U>
  void write_out(int64_t b, int64_t oy, int64_t ox0, int64_t count, int64_t g, int64_t l) {
    constexpr int64_t n = kLanes<T>;
    Convolution<T> c = this->of_values();
    c.out_pixel = U * n;
    const Expand<T> expand(a, this->heads, g);
    // In variables, because the compiler must assume that a store changes the structures.
    const int64_t left = a.channels - g * n, query = a.out.query, pixel = a.out.x;
    const int64_t padded = s.padded;
    const bool sum = a.sum_queries, add = sum && l > 0;
    const T* inverse = this->inverse;
    T* out = a.out.at(b, oy, ox0) + l * query + g * n;
    for (int64_t x = 0; x < count; x += c.pixels) {
      convolve<T, U>(c, this->value_offset(g, l, x), g * s.vector_mix + l * n, block);
      const T* sums = block;
      for (int64_t p = smaller(c.pixels, count - x); p > 0; --p) {
        const Vec<T> first = load(sums) * expand(inverse, l);
        const Vec<T> second = load(sums + (U - 1) * n) * expand(inverse, l + U - 1);
        const Vec<T> total = sum && U == 2 ? first + second : first;
        store(out, add ? load(out, left, T(0)) + total : total, left);
        if (!sum && U == 2) store(out + query, second, left);
        sums += U * n;
        inverse += padded;
        out += pixel;
      }
    }
  }

  // Adds the outputs of the tables of one window that are taken exactly.
  void add_exact(int64_t b, int64_t oy, int64_t ox, const T* inverse) {
    const int64_t head_dims = a.channels / a.heads;
    for (int64_t table = 0; table < s.tables; ++table) {
      if (inverse[table] != 0) continue;
      exact_attention(a, b, oy, ox, table, this->attn);
      const int64_t first = table % a.heads * head_dims;
      T* out = a.out.at(b, oy, ox) + table / a.heads * a.out.query + first;
      over_tokens(a, oy, ox, [&](int64_t t, int64_t y, int64_t x) {
        if (this->attn[t] == 0) return;
        const T weight = this->attn[t] * tap_weight(a, table, t);
        const T* value = a.value.at(b, y, x) + first;
        for (int64_t c = 0; c < head_dims; ++c) out[c] += weight * value[c];
      });
    }
  }

  void run(int64_t task) {
    this->over_rows(task, [&](int64_t b, int64_t oy, int64_t ox0, int64_t count, bool any_exact) {
      for (int64_t g = 0; g < s.vectors; ++g) {
        int64_t l = 0;
        for (; l + 1 < a.queries; l += 2) write_out<2>(b, oy, ox0, count, g, l);
        if (l < a.queries) write_out<1>(b, oy, ox0, count, g, l);
      }
      for (int64_t x = 0; any_exact && x < count; ++x) {
        add_exact(b, oy, ox0 + x, this->inverse + x * s.padded);
      }
    });
  }
};

template <class T>
static void qna_forward(const QnaCall<T>& a, T* scratch, int64_t begin, int64_t end) {
  ForwardTile<T> tile(a, scratch);
  for (int64_t task = begin; task < end; ++task) tile.run(task);
}
