// ELSA: the gradients of values, weights or logits, and ghost heads.

// A pixel gathers from the windows that contain it. This is the sum of the forward pass, with the
// gradient as value, and with the neighbour's weight for the opposite tap.
template <class T>
static void elsa_grad_value(const Elsa<T>& a, T* memory, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  const ElsaScratch<T> scratch(a, memory);

  ElsaSum<T> s{};
  s.value_steps = {-a.dilation * a.grad.y, -a.dilation * a.grad.x, a.grad.x};
  s.weight_steps = {a.kernel - a.dilation * a.weights.y, 1 - a.dilation * a.weights.x, a.weights.x};
  s.head_step = taps;
  s.mul = a.mul;
  s.add = a.add;
  s.table_col = scratch.heads.vectors * kLanes<T>;
  s.table_row = a.kernel * s.table_col;
  s.out_pixel = a.grad_value.x;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    // Mirrored, because a low tap reaches this row from the rows below.
    elsa_clip(a.height - 1 - y, a.height, a.kernel, a.dilation, &s.window.i0, &s.window.i1);

    const auto begin_at = [&](int64_t x, int) {
      s.value = a.grad.at(b, y, x) - half * (s.value_steps.row + s.value_steps.col);
      s.weight = a.weights.at(b, y, x) + half * a.dilation * (a.weights.y + a.weights.x);
      s.out = a.grad_value.at(b, y, x);
    };
    elsa_sum_row(a, scratch.heads, s, begin_at, [&](int64_t x) {
      elsa_clip(a.width - 1 - x, a.width, a.kernel, a.dilation, &s.window.j0, &s.window.j1);
    });
  }
}

// products[t] (+)= grad * (mul *) value, for the taps t of the window of one pixel.
template <class T>
struct ElsaProducts {
  const T *grad, *value, *mul;  // value and mul of the first tap; mul may be null
  int64_t value_row, value_col, table_row, table_col;
  int64_t kernel;
  Window window;
  Vec<T>* products;
};

// Takes U vectors of one head from `vector` on. With SHARED, takes the lanes of a head in the one
// vector that it shares with others. With MORE, adds to products.
template <class T, int U, bool SHARED, bool MUL, bool MORE>
static inline void elsa_products(const ElsaProducts<T>& all, const Heads<T>& heads, int64_t vector,
                                 int64_t head) {
  constexpr int n = kLanes<T>;
  const ElsaProducts<T> s = all;  // a copy, whose members the compiler keeps in registers
  const T* value = s.value + vector * n;
  const auto own_lane = static_cast<typename Types<T>::Int>(head - heads.first[vector]);
  const IntVec<T> mine = heads.lane[vector] == own_lane;
  Vec<T> g[U];
  for (int u = 0; u < U; ++u) g[u] = load(s.grad + (vector + u) * n);
  for (int64_t i = s.window.i0; i < s.window.i1; ++i) {
    for (int64_t j = s.window.j0; j < s.window.j1; ++j) {
      const T* v = value + i * s.value_row + j * s.value_col;
      const int64_t table = vector * n + i * s.table_row + j * s.table_col;
      Vec<T>* out = s.products + i * s.kernel + j;
      Vec<T> product = MORE ? *out : Vec<T>{};
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        const Vec<T> own = MUL ? g[u] * load(s.mul + table + u * n) : g[u];
        const Vec<T> more = own * load(v + u * n);
        product += SHARED ? (mine ? more : Vec<T>{}) : more;
      }
      *out = product;
    }
  }
}

template <class T, int U, bool SHARED>
static inline void elsa_products_of_kind(const ElsaProducts<T>& s, const Heads<T>& heads,
                                         int64_t vector, int64_t head, bool more) {
  const auto kind = s.mul ? (more ? elsa_products<T, U, SHARED, true, true>
                                  : elsa_products<T, U, SHARED, true, false>)
                          : (more ? elsa_products<T, U, SHARED, false, true>
                                  : elsa_products<T, U, SHARED, false, false>);
  kind(s, heads, vector, head);
}

// The same for all channels of a head.
template <class T>
static inline void elsa_head_products(const Elsa<T>& a, const Heads<T>& heads, int64_t head,
                                      const ElsaProducts<T>& s) {
  const int64_t first = head * a.head_dims / kLanes<T>;
  for (int64_t v = first; v < heads.vectors && heads.first[v] <= head;) {
    const bool pair = heads.is_pair(v);
    const auto part = pair                 ? elsa_products_of_kind<T, 2, false>
                      : heads.is_shared(v) ? elsa_products_of_kind<T, 1, true>
                                           : elsa_products_of_kind<T, 1, false>;
    part(s, heads, v, head, v > first);
    v += pair ? 2 : 1;
  }
}

// dots[t] = sum of the lanes of products[t]. Writes whole vectors of dots and destroys products.
template <class T>
MMLOCAL_INLINE void elsa_dots(Vec<T>* products, T* dots, int64_t taps) {
  constexpr int n = kLanes<T>;
  int64_t t = 0;
  for (; t + n <= taps; t += n) store(dots + t, sums_of<T>(products + t));
  if (t == taps) return;
  if (taps - t > 2) {
    for (int64_t rest = taps; rest < t + n; ++rest) products[rest] = Vec<T>{};
    store(dots + t, sums_of<T>(products + t));
  } else {  // as for windows of 7x7, which have one tap more than three vectors of 16
    store(dots + t, Vec<T>{});
    for (; t < taps; ++t) dots[t] = sum<T>(products[t]);
  }
}

// Adds to dots[head][t] for the heads of one vector. Destroys products.
template <class T>
static inline void elsa_narrow_dots(const Heads<T>& heads, int64_t vector, Vec<T>* products,
                                    T* dots, int64_t taps) {
  constexpr int n = kLanes<T>;
  const IntVec<T> head = heads.lane[vector];
  const int64_t padded = round_up(taps, n);
  for (int64_t t = taps; t < padded; ++t) products[t] = Vec<T>{};
  for (int64_t t = 0; t < taps; t += n) {
    const Vec<T>* lanes = products + t;
    transpose<T>(products + t);  // a vector for each lane, with the taps in its own lanes
    for (int i = 0; i < n;) {
      T* out = dots + (heads.first[vector] + head[i]) * padded + t;
      Vec<T> total = load(out) + lanes[i];
      for (++i; i < n && head[i] == head[i - 1]; ++i) total += lanes[i];
      store(out, total);
    }
  }
}

// dots[head][t] = sum over the channels of a head of grad * (mul *) value, for the taps t of the
// window of one pixel. Taps outside the map have `outside`.
template <class T>
static inline void elsa_window_dots(const Elsa<T>& a, const Heads<T>& heads,
                                    const ElsaProducts<T>& s, T* dots) {
  const int64_t taps = a.kernel * a.kernel, padded = round_up(taps, kLanes<T>);
  const bool whole = (s.window.i1 - s.window.i0) * (s.window.j1 - s.window.j0) == taps;
  const Vec<T> outside = broadcast(a.masked ? -kInfinity<T> : T(0));
  const auto prepare = [&] {
    for (int64_t t = 0; t < taps && !whole; ++t) s.products[t] = outside;
  };
  if (2 * a.head_dims >= kLanes<T>) {  // else, more than two heads share a vector
    for (int64_t head = 0; head < a.heads; ++head) {
      prepare();
      elsa_head_products(a, heads, head, s);
      elsa_dots<T>(s.products, dots + head * padded, taps);
    }
    return;
  }
  __builtin_memset(dots, 0, a.heads * padded * sizeof(T));
  for (int64_t v = 0; v < heads.vectors; ++v) {
    prepare();
    elsa_products_of_kind<T, 1, false>(s, heads, v, heads.first[v], false);
    elsa_narrow_dots<T>(heads, v, s.products, dots, taps);
  }
}

template <class T>
static void elsa_grad_attn(const Elsa<T>& a, T* memory, int64_t begin, int64_t end) {
  constexpr int n = kLanes<T>;
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  const ElsaScratch<T> scratch(a, memory);
  T* weights = scratch.own;

  ElsaProducts<T> s{};
  s.products = scratch.products;
  s.mul = a.mul;
  s.value_row = a.dilation * a.value.y;
  s.value_col = a.dilation * a.value.x;
  s.table_col = scratch.heads.vectors * n;
  s.table_row = a.kernel * s.table_col;
  s.kernel = a.kernel;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    elsa_clip(y, a.height, a.kernel, a.dilation, &s.window.i0, &s.window.i1);
    for (int64_t x = 0; x < a.width; ++x) {
      elsa_clip(x, a.width, a.kernel, a.dilation, &s.window.j0, &s.window.j1);
      s.grad = a.grad.at(b, y, x);
      s.value = a.value.at(b, y, x) - half * (s.value_row + s.value_col);
      elsa_window_dots<T>(a, scratch.heads, s, scratch.dots);
      for (int64_t head = 0; head < a.heads; ++head) {
        const T* dots = scratch.dots + head * scratch.padded;
        T* out = a.grad_attn.at(b, y, x) + head * taps;
        T subtract = 0;
        if (a.softmax) {
          const T* own = a.weights.at(b, y, x) + head * taps;
          Vec<T> mean{};
          for (int64_t t = 0; t < taps; t += n) {
            const Vec<T> w = load(own + t, taps - t, T(0));
            store(weights + t, w);
            mean += w * load(dots + t);
          }
          subtract = sum<T>(mean);
        }
        for (int64_t t = 0; t < taps; t += n) {
          Vec<T> dot = load(dots + t);
          if (a.softmax) dot = (dot - subtract) * load(weights + t);
          store(out + t, dot, taps - t);
        }
      }
    }
  }
}

// out[j] += sum over pixels of (weight *) grad * value, for neighbouring taps j and one vector of
// channels. `heads` heads share the vector.
template <class T>
struct ElsaTableSum {
  const T *grad, *value, *weight;  // at column 0 and at the first tap
  int64_t grad_pixel, value_pixel, value_col, weight_pixel, head_step;
  int64_t heads;
  IntVec<T> lane;
  T* out;
  int64_t out_col;
};

// Takes the pixels [x0, x1), and J taps from `tap` on.
template <class T, int J, bool MUL>
static inline void elsa_table_sum(const ElsaTableSum<T>& s, int64_t tap, int64_t x0, int64_t x1) {
  Vec<T> total[J] = {};
  for (int64_t x = x0; x < x1; ++x) {
    const Vec<T> g = load(s.grad + x * s.grad_pixel);
    const T* value = s.value + x * s.value_pixel + tap * s.value_col;
    const T* weight = MUL ? s.weight + x * s.weight_pixel + tap : nullptr;
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      Vec<T> product = g * load(value + j * s.value_col);
      if (MUL) {
        Vec<T> own = broadcast(weight[j]);
        for (int64_t h = 1; h < s.heads; ++h) {
          const auto mine = s.lane == static_cast<typename Types<T>::Int>(h);
          own = mine ? broadcast(weight[h * s.head_step + j]) : own;
        }
        product *= own;
      }
      total[j] += product;
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
    T* out = s.out + (tap + j) * s.out_col;
    store(out, load(out) + total[j]);
  }
}

// The same for all taps of a row. s is at the first one.
template <class T, bool MUL>
static void elsa_table_row(const Elsa<T>& a, const ElsaTableSum<T>& s) {
  constexpr int J = 4;
  const int64_t half = a.kernel / 2;
  // A tap lies in the map for the pixels [begin_of(tap), end_of(tap)).
  const auto begin_of = [&](int64_t tap) { return larger(0, (half - tap) * a.dilation); };
  const auto end_of = [&](int64_t tap) {
    return smaller(a.width, a.width + (half - tap) * a.dilation);
  };
  for (int64_t j = 0; j < a.kernel;) {
    const int64_t count = j + J <= a.kernel ? J : 1;
    const int64_t x0 = begin_of(j), x1 = end_of(j + count - 1);  // all of these taps are in the map
    if (count == 1 || x0 >= x1) {
      for (int64_t t = j; t < j + count; ++t) {
        elsa_table_sum<T, 1, MUL>(s, t, begin_of(t), end_of(t));
      }
    } else {
      elsa_table_sum<T, J, MUL>(s, j, x0, x1);
      for (int64_t t = j; t < j + count; ++t) {
        elsa_table_sum<T, 1, MUL>(s, t, begin_of(t), x0);
        elsa_table_sum<T, 1, MUL>(s, t, x1, end_of(t));
      }
    }
    j += count;
  }
}

// The gradient of one ghost head: mul if MUL, else add.
template <class T, bool MUL>
static void elsa_grad_table(const Elsa<T>& a, const Heads<T>& heads, T* table, int64_t begin,
                            int64_t end) {
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  ElsaTableSum<T> s{};
  s.grad_pixel = a.grad.x;
  s.value_pixel = a.value.x;
  s.value_col = a.dilation * a.value.x;
  s.weight_pixel = a.weights.x;
  s.head_step = taps;
  s.out_col = heads.vectors * kLanes<T>;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    Window window{};
    elsa_clip(y, a.height, a.kernel, a.dilation, &window.i0, &window.i1);
    for (int64_t v = 0; v < heads.vectors; ++v) {
      const int64_t channel = v * kLanes<T>;
      s.heads = heads.last[v] - heads.first[v] + 1;
      s.lane = heads.lane[v];
      s.grad = a.grad.at(b, y, 0) + channel;
      for (int64_t i = window.i0; i < window.i1; ++i) {
        s.value = a.value.at(b, y, 0) + channel + (i - half) * a.dilation * a.value.y -
                  half * s.value_col;
        s.weight = MUL ? a.weights.at(b, y, 0) + heads.first[v] * taps + i * a.kernel : nullptr;
        s.out = table + i * a.kernel * s.out_col + channel;
        elsa_table_row<T, MUL>(a, s);
      }
    }
  }
}

template <class T>
static void elsa_grad_ghost(const Elsa<T>& a, T* memory, int64_t part, int64_t begin, int64_t end) {
  const ElsaScratch<T> scratch(a, memory);
  const int64_t size = a.kernel * a.kernel * scratch.heads.vectors * kLanes<T>;
  if (a.sum_mul) elsa_grad_table<T, true>(a, scratch.heads, a.sum_mul + part * size, begin, end);
  if (a.sum_add) elsa_grad_table<T, false>(a, scratch.heads, a.sum_add + part * size, begin, end);
}
