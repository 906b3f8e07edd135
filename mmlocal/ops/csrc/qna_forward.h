// QnA: the forward pass.

template <class T>
struct ForwardTile : WindowTile<T> {
  using Base = WindowTile<T>;
  using Base::a;
  using Base::s;

  using Base::Base;

  void write_out(int64_t b, int64_t oy, int64_t ox, const T* inverse, const T* sums) {
    constexpr int64_t n = kLanes<T>;
    T* out = a.out.at(b, oy, ox);
    for (int64_t g = 0; g < s.vectors; ++g) {
      Vec<T> total{};
      for (int64_t l = 0; l < a.queries; ++l) {
        const int64_t u = g * a.queries + l;
        total += load(sums + u * n) * expand(a, this->heads, inverse, g, l);
        if (a.sum_queries && l + 1 < a.queries) continue;
        store(out + l * a.out.query + g * n, total, a.channels - g * n);
        total = Vec<T>{};
      }
    }
  }

  // Adds the outputs of the tables of one window that are taken exactly.
  void add_exact(int64_t b, int64_t oy, int64_t ox, const uint8_t* exact) {
    const int64_t head_dims = a.channels / a.heads;
    for (int64_t table = 0; table < s.tables; ++table) {
      if (!exact[table]) continue;
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
      for (int64_t x = 0; x < count; ++x) {
        write_out(b, oy, ox0 + x, this->inverse + x * s.padded,
                  this->sums + x * s.mixed * kLanes<T>);
        if (any_exact) add_exact(b, oy, ox0 + x, this->exact + x * s.tables);
      }
    });
  }
};

template <class T>
static void qna_forward(const Qna<T>& a, T* scratch, int64_t begin, int64_t end) {
  ForwardTile<T> tile(a, scratch);
  for (int64_t task = begin; task < end; ++task) tile.run(task);
}
