// QnA: the first part of the backward pass. It goes over the windows, writes the numbers of each
// window that the second part needs, and makes the gradients of the tables.

template <class T>
struct BackwardWindowTile : WindowTile<T> {
  using Base = WindowTile<T>;
  using Base::a;
  using Base::heads;
  using Base::s;
  using Base::tiling;

  T* grads;     // (vectors, cols, queries, n): gradient over Z
  T* mean;      // (cols, padded)
  T* products;  // (mixed, n)
  T* dots;      // (kernel^2)

  BackwardWindowTile(const Qna<T>& a, T* memory) : Base(a, memory) {
    grads = this->scratch.take(tiling.cols * s.mixed * kLanes<T>);
    mean = this->scratch.take(tiling.cols * s.padded);
    products = this->scratch.take(s.mixed * kLanes<T>);
    dots = this->scratch.take(a.kernel * a.kernel);
  }

  // Writes inverse and mean of a window, and its gradient over Z.
  void write_grads(int64_t b, int64_t oy, int64_t ox, int64_t x, const T* inverse, const T* sums) {
    constexpr int64_t n = kLanes<T>;
    const T* grad = a.grad.at(b, oy, ox);
    for (int64_t g = 0; g < s.vectors; ++g) {
      for (int64_t l = 0; l < a.queries; ++l) {
        const int64_t u = g * a.queries + l;
        const Vec<T> scaled = load(grad + l * a.grad.query + g * n, a.channels - g * n, T(0)) *
                              expand(a, heads, inverse, g, l);
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

  // Adds the gradients of the tables from a row of windows.
  void add_tables(int64_t count, int64_t part) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel, queries = a.queries, token = queries * n;
    Correlation<T> rel{}, mix{};
    rel.pixels = mix.pixels = count;
    rel.cols = mix.cols = k;
    rel.grad_pixel = rel.source_col = rel.table_col = s.padded;
    rel.source_pixel = a.stride * s.padded;
    mix.grad_pixel = mix.source_col = token;
    mix.source_pixel = a.stride * token;
    mix.table_col = s.mixed * n;
    for (int64_t i = 0; i < k; ++i) {
      T* rel_row = a.sum_rel + (part * k + i) * k * s.padded;
      for (int64_t t = 0; t < s.padded; t += n) {
        correlate_row<T, 1>(rel, mean + t, this->exp_rows[i] + t, rel_row + t);
      }
      T* mix_row = a.sum_mix + (part * k + i) * k * s.mixed * n;
      for (int64_t g = 0; g < s.vectors; ++g) {
        for (int64_t l = 0; l < queries;) {
          const bool two = l + 1 < queries;
          const auto row = two ? correlate_row<T, 2> : correlate_row<T, 1>;
          row(mix, grads + g * tiling.cols * token + l * n,
              this->value_rows[i] + g * tiling.ring_cols * token + l * n,
              mix_row + (g * queries + l) * n);
          l += two ? 2 : 1;
        }
      }
    }
  }

  // Does the same for the tables of one window that are taken exactly.
  void add_exact_tables(int64_t b, int64_t oy, int64_t ox, const uint8_t* exact, int64_t part) {
    const int64_t taps = a.kernel * a.kernel;
    for (int64_t table = 0; table < s.tables; ++table) {
      if (!exact[table]) continue;
      const T mean = exact_products(a, b, oy, ox, table, this->attn, dots);
      const int64_t first = (part * s.tables + table) * taps;
      for (int64_t t = 0; t < taps; ++t) {
        const T weight = tap_weight(a, table, t);
        a.sum_exact_mix[first + t] += this->attn[t] * dots[t];
        a.sum_exact_rel[first + t] += this->attn[t] * (weight * dots[t] - mean);
      }
    }
  }

  void run(int64_t task, int64_t part) {
    this->over_rows(task, [&](int64_t b, int64_t oy, int64_t ox0, int64_t count, bool any_exact) {
      for (int64_t x = 0; x < count; ++x) {
        write_grads(b, oy, ox0 + x, x, this->inverse + x * s.padded,
                    this->sums + x * s.mixed * kLanes<T>);
      }
      if (a.sum_rel) add_tables(count, part);
      if (!any_exact) return;
      const int64_t row = b * a.out_height + oy;
      __builtin_memcpy(a.exact + (row * a.out_width + ox0) * s.tables, this->exact,
                       count * s.tables);
      // Neighbouring tiles share the row, and all of them write the same number.
      __atomic_store_n(a.exact_rows + row, 1, __ATOMIC_RELAXED);
      for (int64_t x = 0; a.sum_rel && x < count; ++x) {
        add_exact_tables(b, oy, ox0 + x, this->exact + x * s.tables, part);
      }
    });
  }
};

// This is enough for the forward pass too.
template <class T>
static int64_t qna_window_scratch(const Qna<T>& a) {
  return BackwardWindowTile<T>(a, nullptr).scratch.used;
}

template <class T>
static void qna_backward_windows(const Qna<T>& a, T* scratch, int64_t part, int64_t begin,
                                 int64_t end) {
  BackwardWindowTile<T> tile(a, scratch);
  for (int64_t task = begin; task < end; ++task) tile.run(task, part);
}
