// QnA: the second part of the backward pass. It goes over the tokens and makes the gradients of
// values and scores. Each token gathers from the windows that contain it.

// A tile goes down the map row by row. For the windows that contain tokens of its row, it keeps the
// gradient over Z, and mean, in a ring.
template <class T>
struct TokenTile {
  const QnaCall<T>& a;
  const Sizes<T> s;
  const Tiling<T> tiling;
  Scratch<T> scratch;
  const Heads<T> heads;
  T* ring_grad;  // (ring_rows, vectors, ring_cols, queries, n)
  T* ring_mean;  // (ring_rows, ring_cols, padded)
  const T **grad_rows, **mean_rows, **rel_rows, **mix_rows;  // (kernel)
  T* sums;                                                   // (cols, mixed, n)
  T* means;                                                  // (cols, padded)
  T *exps, *inverse;                                         // (padded), and room for a vector
  T* products;                                               // (mixed, n)
  T *attn, *dots;                                            // (kernel^2)

  TokenTile(const QnaCall<T>& a, T* memory)
      : a(a),
        s(a),
        tiling(token_tiling(a)),
        scratch{memory},
        heads(a.heads, a.channels / a.heads, scratch) {
    constexpr int64_t n = kLanes<T>;
    ring_grad = scratch.take(tiling.ring_rows * grad_row());
    ring_mean = scratch.take(tiling.ring_rows * mean_row());
    grad_rows = scratch.template take<const T*>(a.kernel);
    mean_rows = scratch.template take<const T*>(a.kernel);
    rel_rows = scratch.template take<const T*>(a.kernel);
    mix_rows = scratch.template take<const T*>(a.kernel);
    sums = scratch.take(tiling.cols * s.mixed * n);
    means = scratch.take(tiling.cols * s.padded);
    exps = scratch.take(s.padded + n);
    inverse = scratch.take(s.padded + n);
    products = scratch.take(s.mixed * n);
    attn = scratch.take(a.kernel * a.kernel);
    dots = scratch.take(a.kernel * a.kernel);
  }

  int64_t grad_row() const { return tiling.ring_cols * s.mixed * kLanes<T>; }
  int64_t mean_row() const { return tiling.ring_cols * s.padded; }

  // Fills the columns of a tile that lie outside the map of windows with 0.
  void clear_border(int64_t ox0) {
    const int64_t token = a.queries * kLanes<T>;
    for (int64_t i = 0; i < tiling.ring_rows; ++i) {
      tiling.clear_border(ring_mean + i * mean_row(), s.padded, ox0, a.out_width);
      for (int64_t g = 0; g < s.vectors; ++g) {
        T* row = ring_grad + i * grad_row() + g * tiling.ring_cols * token;
        tiling.clear_border(row, token, ox0, a.out_width);
      }
    }
  }

  // Loads the gradient over Z, and mean, of one row of windows.
  void load_row(int64_t b, int64_t oy, int64_t ox0) {
    constexpr int64_t n = kLanes<T>;
    const int64_t slot = oy % tiling.ring_rows, token = a.queries * n;
    T* grads = ring_grad + slot * grad_row();
    T* means = ring_mean + slot * mean_row();
    for (int64_t ox = larger(0, ox0); ox < smaller(a.out_width, ox0 + tiling.ring_cols); ++ox) {
      const T* grad = a.grad.at(b, oy, ox);
      __builtin_memcpy(inverse, a.inverse.at(b, oy, ox), s.padded * sizeof(T));
      __builtin_memcpy(means + (ox - ox0) * s.padded, a.mean.at(b, oy, ox), s.padded * sizeof(T));
      for (int64_t g = 0; g < s.vectors; ++g) {
        const Expand<T> expand(a, heads, g);
        for (int64_t l = 0; l < a.queries; ++l) {
          const Vec<T> v = load(grad + l * a.grad.query + g * n, a.channels - g * n, T(0));
          store(grads + (g * tiling.ring_cols + ox - ox0) * token + l * n, v * expand(inverse, l));
        }
      }
    }
  }

  // The rows of windows [first, last] contain the tokens of row y. For each of them, this selects
  // its row in the rings, and the row of taps in the tables that meets y.
  void select_rows(int64_t y, int64_t first, int64_t last) {
    for (int64_t oy = first; oy <= last; ++oy) {
      const int64_t slot = oy % tiling.ring_rows;
      const int64_t tap = y + a.padding - oy * a.stride;
      grad_rows[oy - first] = ring_grad + slot * grad_row();
      mean_rows[oy - first] = ring_mean + slot * mean_row();
      rel_rows[oy - first] = a.rel + tap * a.kernel * s.padded;
      mix_rows[oy - first] = a.mix + tap * a.kernel * a.queries * kLanes<T>;
    }
  }

  // Computes sums and means of the tokens [x0, x1) of a row. They are the gradient over Z, and
  // mean, of `rows` rows of windows, convolved with the tables.
  void load_sums(int64_t x0, int64_t x1, int64_t ox0, int64_t rows) {
    constexpr int64_t n = kLanes<T>;
    const int64_t k = a.kernel, stride = a.stride, queries = a.queries, token = queries * n;
    Convolution<T> mean{}, grad{};
    mean.source = mean_rows;
    mean.table = rel_rows;
    mean.source_col = -s.padded;
    mean.source_pixel = s.padded;
    mean.table_col = mean.out_pixel = stride * s.padded;
    grad.source = grad_rows;
    grad.table = mix_rows;
    grad.source_col = -token;
    grad.source_pixel = token;
    grad.table_col = stride * token;
    grad.out_pixel = stride * s.mixed * n;
    mean.pixels = grad.pixels = tiling.pixels;
    mean.rows = grad.rows = rows;
    // Tokens of one phase have the same taps, and their windows are neighbours.
    for (int64_t phase = 0; phase < smaller(stride, x1 - x0); ++phase) {
      const int64_t tap = (x0 + phase + a.padding) % stride;
      const int64_t source = (x0 + phase + a.padding - tap) / stride - ox0;
      mean.cols = grad.cols = tap < k ? (k - 1 - tap) / stride + 1 : 0;
      for (int64_t x = phase; x < x1 - x0; x += tiling.pixels * stride) {
        for (int64_t t = 0; t < s.padded; t += n) {
          convolve<T, 1>(mean, (source + x / stride) * s.padded + t, tap * s.padded + t,
                         means + x * s.padded + t);
        }
      }
      for (int64_t g = 0; g < s.vectors; ++g) {
        for (int64_t l = 0; l < queries;) {
          const int64_t u = g * queries + l;
          const bool two = l + 1 < queries;
          const auto part = two ? convolve<T, 2> : convolve<T, 1>;
          for (int64_t x = phase; x < x1 - x0; x += tiling.pixels * stride) {
            const int64_t at = g * tiling.ring_cols + source + x / stride;
            part(grad, at * token + l * n, g * s.vector_mix + (tap * queries + l) * n,
                 sums + (x * s.mixed + u) * n);
          }
          l += two ? 2 : 1;
        }
      }
    }
  }

  // Writes the gradients of one token and destroys its sums.
  void write_grads(int64_t b, int64_t y, int64_t x, T* sums, const T* means) {
    constexpr int64_t n = kLanes<T>;
    exponentials(a, s, b, y, x, exps);
    const T* value = a.value.at(b, y, x);
    for (int64_t g = 0; g < s.vectors; ++g) {
      const Vec<T> v = load(value + g * n, a.channels - g * n, T(0));
      const Expand<T> expand(a, heads, g);
      Vec<T> total{};
      for (int64_t l = 0; l < a.queries; ++l) {
        const int64_t u = g * a.queries + l;
        const Vec<T> sum = load(sums + u * n);
        total += sum * expand(exps, l);
        store(products + u * n, sum * v);
      }
      if (a.grad_value.data) store(a.grad_value.at(b, y, x) + g * n, total, a.channels - g * n);
    }
    if (!a.grad_scores.data) return;
    T* dots = sums;  // no longer needed
    sum_heads(a, s, products, dots);
    for (int64_t i = 0; i < s.padded; i += n) {
      const int64_t t = s.whole(i);
      const Vec<T> grad = (load(dots + t) - load(means + t)) * load(exps + t);
      store(a.grad_scores.at(b, y, x) + t, grad, s.tables - t);
    }
  }

  // Adds the gradients of the tokens [x0, x1) of row y from a window that is taken exactly.
  void add_exact(int64_t b, int64_t oy, int64_t ox, int64_t y, int64_t x0, int64_t x1) {
    const int64_t k = a.kernel, head_dims = a.channels / a.heads;
    const T* inverse = a.inverse.at(b, oy, ox);
    for (int64_t table = 0; table < s.tables; ++table) {
      if (inverse[table] != 0) continue;
      const T mean = exact_products(a, b, oy, ox, table, attn, dots);
      const int64_t first = table % a.heads * head_dims;
      const T* grad = grad_of_table(a, b, oy, ox, table);
      for (int64_t j = 0; j < k; ++j) {
        const int64_t x = ox * a.stride - a.padding + j;
        if (x < x0 || x >= x1) continue;
        const int64_t t = (y - oy * a.stride + a.padding) * k + j;
        const T weight = tap_weight(a, table, t);
        if (a.grad_scores.data) {
          a.grad_scores.at(b, y, x)[table] += attn[t] * (weight * dots[t] - mean);
        }
        for (int64_t c = 0; a.grad_value.data && c < head_dims; ++c) {
          a.grad_value.at(b, y, x)[first + c] += attn[t] * weight * grad[c];
        }
      }
    }
  }

  void run(int64_t task) {
    const int64_t k = a.kernel, stride = a.stride;
    const Tile<T> tile(tiling, task);
    const int64_t b = tile.b, x0 = tile.x, x1 = smaller(x0 + tiling.cols, a.width);
    // A window contains a token if it begins at most kernel - 1 before it.
    const auto first_window = [&](int64_t x) { return ceil_div(x + a.padding - k + 1, stride); };
    const int64_t ox0 = first_window(x0);
    clear_border(ox0);
    int64_t next = 0;
    for (int64_t y = tile.y; y < smaller(tile.y + tiling.rows, a.height); ++y) {
      const int64_t first = larger(0, first_window(y));
      const int64_t last = smaller((y + a.padding) / stride, a.out_height - 1);
      for (next = larger(next, first); next <= last; ++next) load_row(b, next, ox0);
      select_rows(y, first, last);
      load_sums(x0, x1, ox0, last - first + 1);
      for (int64_t x = x0; x < x1; ++x) {
        write_grads(b, y, x, sums + (x - x0) * s.mixed * kLanes<T>, means + (x - x0) * s.padded);
      }
      for (int64_t oy = first; oy <= last; ++oy) {
        if (!a.exact_rows[b * a.out_height + oy]) continue;
        const int64_t end = smaller(a.out_width, (x1 - 1 + a.padding) / stride + 1);
        for (int64_t ox = larger(0, ox0); ox < end; ++ox) add_exact(b, oy, ox, y, x0, x1);
      }
    }
  }
};

template <class T>
static int64_t qna_token_tasks(const QnaCall<T>& a) {
  return token_tiling(a).tiles(a);
}

template <class T>
static int64_t qna_token_scratch(const QnaCall<T>& a) {
  return TokenTile<T>(a, nullptr).scratch.used;
}

template <class T>
static void qna_backward_tokens(const QnaCall<T>& a, T* scratch, int64_t begin, int64_t end) {
  TokenTile<T> tile(a, scratch);
  for (int64_t task = begin; task < end; ++task) tile.run(task);
}
