// QnA: the first part of the backward pass. It goes over the windows, writes the numbers of each
// window that the second part needs, and makes the gradients of the tables.

template <class T>
struct BackwardWindowTile : WindowTile<T> {
  using Base = WindowTile<T>;
  using Base::a;
  using Base::heads;
  using Base::inverse;
  using Base::s;
  using Base::tiling;

  T* sums;       // (cols, mixed, n)
  T* grads;      // (vectors, cols, queries, n): gradient over Z
  T* mean;       // (cols, padded)
  T* products;   // (mixed, n)
  T* dots;       // (kernel^2)
  Vec<T> check;  // 0, or NaN if any product is not finite

  BackwardWindowTile(const QnaCall<T>& a, T* memory) : Base(a, memory) {
    sums = this->scratch.take(tiling.cols * s.mixed * kLanes<T>);
    grads = this->scratch.take(tiling.cols * s.mixed * kLanes<T>);
    mean = this->scratch.take(tiling.cols * s.padded);
    products = this->scratch.take(s.mixed * kLanes<T>);
    dots = this->scratch.take(a.kernel * a.kernel);
    check = Vec<T>{};
  }

  // Convolves E * value. The innermost loop is over pixels, because neighbouring blocks share
  // tokens that are still in the L1 cache.
  void load_sums(int64_t count) {
    constexpr int64_t n = kLanes<T>;
    Convolution<T> c = this->of_values();
    c.out_pixel = s.mixed * n;
    for (int64_t g = 0; g < s.vectors; ++g) {
      for (int64_t l = 0; l < a.queries;) {
        const int64_t u = g * a.queries + l;
        const bool two = l + 1 < a.queries;
        const auto part = two ? convolve<T, 2> : convolve<T, 1>;
        for (int64_t x = 0; x < count; x += c.pixels) {
          part(c, this->value_offset(g, l, x), g * s.vector_mix + l * n,
               sums + x * c.out_pixel + u * n);
        }
        l += two ? 2 : 1;
      }
    }
  }

  // Writes inverse and mean of a window, and its gradient over Z.
  void write_grads(int64_t b, int64_t oy, int64_t ox, int64_t x) {
    constexpr int64_t n = kLanes<T>;
    const T* inverse = this->inverse + x * s.padded;
    const T* sums = this->sums + x * s.mixed * n;
    const T* grad = a.grad.at(b, oy, ox);
    for (int64_t g = 0; g < s.vectors; ++g) {
      const Expand<T> expand(a, heads, g);
      for (int64_t l = 0; l < a.queries; ++l) {
        const int64_t u = g * a.queries + l;
        const Vec<T> scaled =
            load(grad + l * a.grad.query + g * n, a.channels - g * n, T(0)) * expand(inverse, l);
        store(grads + ((g * tiling.cols + x) * a.queries + l) * n, scaled);
        store(products + u * n, scaled * load(sums + u * n));
      }
    }
    T* own = mean + x * s.padded;
    sum_heads(a, s, products, own);
    for (int64_t t = 0; t < s.tables; ++t) own[t] *= inverse[t];
    for (int64_t t = 0; t < s.padded; t += n) check += load(own + t) * T(0);
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
    mix.grad_pixel = mix.source_col = mix.table_col = token;
    mix.source_pixel = a.stride * token;
    for (int64_t i = 0; i < this->rows; ++i) {
      T* rel_row = a.sum_rel + part * a.sums_of_part + (this->rel_rows[i] - a.rel);
      for (int64_t t = 0; t < s.padded; t += n) {
        correlate_row<T, 1>(rel, mean + t, this->exp_rows[i] + t, rel_row + t);
      }
      T* mix_row = a.sum_mix + part * a.sums_of_part + (this->mix_rows[i] - a.mix);
      for (int64_t g = 0; g < s.vectors; ++g) {
        for (int64_t l = 0; l < queries;) {
          const bool two = l + 1 < queries;
          const auto row = two ? correlate_row<T, 2> : correlate_row<T, 1>;
          row(mix, grads + g * tiling.cols * token + l * n,
              this->value_rows[i] + g * tiling.ring_cols * token + l * n,
              mix_row + g * s.vector_mix + l * n);
          l += two ? 2 : 1;
        }
      }
    }
  }

  // Does the same for the tables of one window that are taken exactly.
  void add_exact_tables(int64_t b, int64_t oy, int64_t ox, const T* inverse, int64_t part) {
    const int64_t taps = a.kernel * a.kernel;
    for (int64_t table = 0; table < s.tables; ++table) {
      if (inverse[table] != 0) continue;
      const T mean = exact_products(a, b, oy, ox, table, this->attn, dots);
      for (int64_t t = 0; t < taps; ++t) {
        const T weight = tap_weight(a, table, t);
        const int64_t at = part * a.sums_of_part + t * s.padded + table;
        a.sum_exact_mix[at] += this->attn[t] * dots[t];
        a.sum_exact_rel[at] += this->attn[t] * (weight * dots[t] - mean);
      }
    }
  }

  void run(int64_t task, int64_t part) {
    this->over_rows(task, [&](int64_t b, int64_t oy, int64_t ox0, int64_t count, bool any_exact) {
      load_sums(count);
      for (int64_t x = 0; x < count; ++x) write_grads(b, oy, ox0 + x, x);
      if (a.sums) add_tables(count, part);
      if (!any_exact) return;
      // Neighbouring tiles share the row, and all of them write the same number.
      __atomic_store_n(a.exact_rows + b * a.out_height + oy, 1, __ATOMIC_RELAXED);
      for (int64_t x = 0; a.sums && x < count; ++x) {
        add_exact_tables(b, oy, ox0 + x, inverse + x * s.padded, part);
      }
    });
  }
};

// This is enough for the forward pass too.
template <class T>
static int64_t qna_window_scratch(const QnaCall<T>& a) {
  return BackwardWindowTile<T>(a, nullptr).scratch.used;
}

template <class T>
static bool qna_backward_windows(const QnaCall<T>& a, T* scratch, int64_t part, int64_t begin,
                                 int64_t end) {
  BackwardWindowTile<T> tile(a, scratch);
  if (a.sums) __builtin_memset(a.sums + part * a.sums_of_part, 0, a.sums_of_part * sizeof(T));
  for (int64_t task = begin; task < end; ++task) tile.run(task, part);
  return sum<T>(tile.check) == 0;
}
