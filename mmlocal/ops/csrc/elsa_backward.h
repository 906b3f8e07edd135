// ELSA: the gradients of values, weights or logits, and ghost heads.

// A pixel gathers from the windows that contain it. This is the sum of the forward pass, with the
// gradient as value, and with the neighbour's weight for the opposite tap.
template <class T>
static void elsa_grad_value(const Elsa<T>& a, T* memory, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  const ElsaScratch<T> scratch(a, memory);

  ElsaSum<T> s{};
  s.packed = scratch.packed;
  s.value_row = a.dilation * a.grad.y;
  s.value_col = a.dilation * a.grad.x;
  s.weight_tap_row = a.dilation * a.weights.y - a.kernel;
  s.weight_row = a.weights.y;
  s.weight_col = a.dilation * a.weights.x;
  s.weight_head = taps;
  s.out_row = a.grad_value.y;
  s.out_col = a.dilation * a.grad_value.x;
  elsa_sum_rows<T, true>(a, scratch.heads, s, begin, end, [&](int64_t b, int64_t y, int64_t x) {
    s.value = a.grad.at(b, y, x) - half * (s.value_row + s.value_col);
    s.weight = a.weights.at(b, y, x) - half * a.dilation * (a.weights.y + a.weights.x) + taps - 1;
    s.out = a.grad_value.at(b, y, x);
  });
}

// products[p][t] (+)= grad * (mul *) value, for the taps t of the windows of P pixels. Pixel p has
// the values from column p on, of which [left, right) are in the map.
template <class T>
struct ElsaProducts {
  const T *grad, *value, *mul;  // value and mul of the first tap; mul may be null
  int64_t grad_col, value_row, value_col, table_row, table_col;
  int64_t kernel, padded, top, bottom, left, right;
  Vec<T>* products;  // (P, padded)
};

// Takes U vectors of one head from `vector` on. With SHARED, takes the lanes of a head in the one
// vector that it shares with others. With MORE, adds to products.
template <class T, int P, int U, bool SHARED, bool MUL, bool MORE>
static inline void elsa_products(const ElsaProducts<T>& all, const Heads<T>& heads, int64_t vector,
                                 int64_t head) {
  constexpr int n = kLanes<T>;
  const ElsaProducts<T> s = all;  // a copy, whose members the compiler keeps in registers
  const auto own_lane = static_cast<typename Types<T>::Int>(head - heads.first[vector]);
  const IntVec<T> mine = heads.lane[vector] == own_lane;
  Vec<T> g[P][U];
#pragma GCC unroll 2
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) g[p][u] = load(s.grad + p * s.grad_col + (vector + u) * n);
  }
  for (int64_t i = s.top; i < s.bottom; ++i) {
    const T* values = s.value + i * s.value_row + vector * n;
    const T* table = MUL ? s.mul + i * s.table_row + vector * n : nullptr;
    Vec<T>* products = s.products + i * s.kernel;
    const auto add = [&](int p, int64_t j, const Vec<T>* v) __attribute__((always_inline)) {
      Vec<T>* out = products + p * s.padded + j;
      Vec<T> product = MORE ? *out : Vec<T>{};
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) {
        const Vec<T> own = MUL ? g[p][u] * load(table + j * s.table_col + u * n) : g[p][u];
        const Vec<T> more = own * v[u];
        product += SHARED ? (mine ? more : Vec<T>{}) : more;
      }
      *out = product;
    };
    // The pixels [first, last) have column c.
    const auto add_column = [&](int64_t c, int first, int last) __attribute__((always_inline)) {
      Vec<T> v[U];
#pragma GCC unroll 4
      for (int u = 0; u < U; ++u) v[u] = load(values + c * s.value_col + u * n);
#pragma GCC unroll 2
      for (int p = first; p < last; ++p) add(p, c - p, v);
    };
    if (P == 2 && s.left == 0) add_column(0, 0, 1);
    for (int64_t c = larger(P - 1, s.left); c < smaller(s.kernel, s.right); ++c) {
      add_column(c, 0, P);
    }
    if (P == 2 && s.kernel < s.right) add_column(s.kernel, 1, 2);
  }
}

template <class T, int P, int U, bool SHARED>
static inline void elsa_products_of_kind(const ElsaProducts<T>& s, const Heads<T>& heads,
                                         int64_t vector, int64_t head, bool more) {
  const auto kind = s.mul ? (more ? elsa_products<T, P, U, SHARED, true, true>
                                  : elsa_products<T, P, U, SHARED, true, false>)
                          : (more ? elsa_products<T, P, U, SHARED, false, true>
                                  : elsa_products<T, P, U, SHARED, false, false>);
  kind(s, heads, vector, head);
}

// The same for all channels of a head.
template <class T, int P>
static inline void elsa_head_products(const Elsa<T>& a, const Heads<T>& heads, int64_t head,
                                      const ElsaProducts<T>& s) {
  constexpr int most = kLanes<T> < 16 ? 4 : 2;  // vectors at once: heads often have 32 channels
  const int64_t first = head * a.head_dims / kLanes<T>;
  for (int64_t v = first; v < heads.vectors && heads.first[v] <= head;) {
    const bool many = v + most <= heads.vectors && heads.first[v] == heads.last[v + most - 1];
    const auto part = many                 ? elsa_products_of_kind<T, P, most, false>
                      : heads.is_shared(v) ? elsa_products_of_kind<T, P, 1, true>
                                           : elsa_products_of_kind<T, P, 1, false>;
    part(s, heads, v, head, v > first);
    v += many ? most : 1;
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
  } else {  // as for windows of 7x7, which have one tap more than whole vectors
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

// dots[p][head][t] = sum over the channels of a head of grad * (mul *) value, for the taps t of the
// windows of P pixels. Taps outside the map have `outside`.
template <class T, int P>
static inline void elsa_window_dots(const Elsa<T>& a, const Heads<T>& heads,
                                    const ElsaProducts<T>& s, T* dots) {
  const int64_t taps = a.kernel * a.kernel, of_pixel = a.heads * s.padded;
  const bool whole = (s.bottom - s.top) == a.kernel && s.right - s.left == a.kernel + P - 1;
  const Vec<T> outside = broadcast(a.masked ? -kInfinity<T> : T(0));
  const auto prepare = [&] {
    for (int64_t t = 0; t < P * s.padded && !whole; ++t) s.products[t] = outside;
  };
  if (2 * a.head_dims >= kLanes<T>) {  // else, more than two heads share a vector
    for (int64_t head = 0; head < a.heads; ++head) {
      prepare();
      elsa_head_products<T, P>(a, heads, head, s);
      for (int p = 0; p < P; ++p) {
        elsa_dots<T>(s.products + p * s.padded, dots + p * of_pixel + head * s.padded, taps);
      }
    }
    return;
  }
  __builtin_memset(dots, 0, P * of_pixel * sizeof(T));
  for (int64_t v = 0; v < heads.vectors; ++v) {
    prepare();
    elsa_products_of_kind<T, P, 1, false>(s, heads, v, heads.first[v], false);
    for (int p = 0; p < P; ++p) {
      elsa_narrow_dots<T>(heads, v, s.products + p * s.padded, dots + p * of_pixel, taps);
    }
  }
}

// The gradient of the logits of one pixel and head, or the dots themselves without softmax. grad
// may be own.
template <class T>
MMLOCAL_INLINE void elsa_grad_logits(const Elsa<T>& a, const T* dots, const T* own, T* grad) {
  constexpr int n = kLanes<T>;
  const int64_t taps = a.kernel * a.kernel;
  if (!a.softmax) {
    for (int64_t t = 0; t < taps; t += n) store(grad + t, load(dots + t), taps - t);
    return;
  }
  const int64_t rest = taps / n * n;
  const Vec<T> last = load(own + rest, taps - rest, T(0));
  Vec<T> mean = last * load(dots + rest);
  for (int64_t t = 0; t < rest; t += n) mean += load(own + t) * load(dots + t);
  const Vec<T> subtract = broadcast(sum<T>(mean));
  for (int64_t t = 0; t < rest; t += n) {
    store(grad + t, (load(dots + t) - subtract) * load(own + t));
  }
  store(grad + rest, (load(dots + rest) - subtract) * last, taps - rest);
}

template <class T, int P>
static inline void elsa_grad_attn_of_pixels(const Elsa<T>& a, const ElsaScratch<T>& scratch,
                                            const ElsaProducts<T>& s, int64_t b, int64_t y,
                                            int64_t x) {
  const int64_t taps = a.kernel * a.kernel;
  elsa_window_dots<T, P>(a, scratch.heads, s, scratch.dots);
  for (int p = 0; p < P; ++p) {
    const T* own = a.softmax ? a.weights.at(b, y, x + p * a.dilation) : nullptr;
    T* grad = a.grad_attn.at(b, y, x + p * a.dilation);
    for (int64_t head = 0; head < a.heads; ++head) {
      elsa_grad_logits(a, scratch.dots + (p * a.heads + head) * s.padded, own + head * taps,
                       grad + head * taps);
    }
  }
}

template <class T>
static void elsa_grad_attn(const Elsa<T>& a, T* memory, int64_t begin, int64_t end) {
  const int64_t half = a.kernel / 2, d = a.dilation;
  const ElsaScratch<T> scratch(a, memory);

  ElsaProducts<T> s{};
  s.products = scratch.products;
  s.mul = a.mul;
  s.grad_col = d * a.grad.x;
  s.value_row = d * a.value.y;
  s.value_col = d * a.value.x;
  s.table_col = scratch.heads.vectors * kLanes<T>;
  s.table_row = a.kernel * s.table_col;
  s.kernel = a.kernel;
  s.padded = scratch.padded;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    elsa_clip(y, a.height, a.kernel, d, &s.top, &s.bottom);
    for (int64_t line = 0; line < smaller(d, a.width); ++line) {
      for (int64_t x = line; x < a.width;) {
        const int64_t pixels = x + d < a.width ? 2 : 1;
        s.left = larger(0, half - x / d);
        s.right = smaller(s.kernel + pixels - 1, half + (a.width - 1 - x) / d + 1);
        s.grad = a.grad.at(b, y, x);
        s.value = a.value.at(b, y, x) - half * (s.value_row + s.value_col);
        const auto part =
            pixels == 2 ? elsa_grad_attn_of_pixels<T, 2> : elsa_grad_attn_of_pixels<T, 1>;
        part(a, scratch, s, b, y, x);
        x += pixels * d;
      }
    }
  }
}

// out[j] += sum over pixels of (weight *) grad * value, for neighbouring taps j and one vector of
// channels. Pixel x has the value x + j. `heads` heads share the vector.
template <class T>
struct ElsaTableSum {
  const T *grad, *value, *weight;  // at the first pixel and at the first tap
  int64_t grad_col, value_col, weight_col, weight_head;
  int64_t cols, left, right;  // values [left, right) are in the map
  int64_t heads;
  IntVec<T> lane;
  T* out;
  int64_t out_col;
};

// Takes X pixels from x on, and J taps from `tap` on. With EDGE, some values may be outside the
// map.
template <class T, int X, int J, bool EDGE, bool MUL>
MMLOCAL_INLINE void elsa_table_block(const ElsaTableSum<T>& s, int64_t x, int64_t tap,
                                     Vec<T> (&total)[J]) {
  const T* value = s.value + (x + tap) * s.value_col;
  const T* weight = MUL ? s.weight + x * s.weight_col + tap : nullptr;
  const int64_t left = s.left - x - tap, right = s.right - x - tap;
  Vec<T> g[X];
#pragma GCC unroll 4
  for (int p = 0; p < X; ++p) g[p] = load(s.grad + (x + p) * s.grad_col);
#pragma GCC unroll 16
  for (int c = 0; c < X + J - 1; ++c, value += s.value_col) {
    if (EDGE && (c < left || c >= right)) continue;
    const Vec<T> v = load(value);
#pragma GCC unroll 4
    for (int p = 0; p < X; ++p) {
      const int j = c - p;
      if (j < 0 || j >= J) continue;
      if (MUL) {
        const T* w = weight + p * s.weight_col + j;
        total[j] += g[p] * v * lane_weights(w, s.weight_head, s.heads, s.lane);
      } else {
        total[j] += g[p] * v;
      }
    }
  }
}

// Takes all pixels of a line.
template <class T, int J, bool MUL>
static void elsa_table_sum(const ElsaTableSum<T>& sum, int64_t tap) {
  constexpr int X = 4;
  const ElsaTableSum<T> s = sum;  // a copy, whose members the compiler keeps in registers
  Vec<T> total[J] = {};
  int64_t x = 0;
  for (; x + X <= s.cols; x += X) {
    if (s.left <= x + tap && x + tap + X + J - 1 <= s.right) {
      elsa_table_block<T, X, J, false, MUL>(s, x, tap, total);
    } else {
      elsa_table_block<T, X, J, true, MUL>(s, x, tap, total);
    }
  }
  for (; x < s.cols; ++x) elsa_table_block<T, 1, J, true, MUL>(s, x, tap, total);
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) {
    T* out = s.out + (tap + j) * s.out_col;
    store(out, load(out) + total[j]);
  }
}

// The gradient of one ghost head: mul if MUL, else add.
template <class T, bool MUL>
static void elsa_grad_table(const Elsa<T>& a, const Heads<T>& heads, T* table, int64_t begin,
                            int64_t end) {
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2, d = a.dilation;
  ElsaTableSum<T> s{};
  s.grad_col = d * a.grad.x;
  s.value_col = d * a.value.x;
  s.weight_col = d * a.weights.x;
  s.weight_head = taps;
  s.left = half;
  s.out_col = heads.vectors * kLanes<T>;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    int64_t first, last;
    elsa_clip(y, a.height, a.kernel, d, &first, &last);
    for (int64_t v = 0; v < heads.vectors; ++v) {
      const int64_t channel = v * kLanes<T>;
      s.heads = heads.last[v] - heads.first[v] + 1;
      s.lane = heads.lane[v];
      for (int64_t x = 0; x < smaller(d, a.width); ++x) {
        s.cols = (a.width - x + d - 1) / d;
        s.right = half + s.cols;
        s.grad = a.grad.at(b, y, x) + channel;
        for (int64_t i = first; i < last; ++i) {
          s.value = a.value.at(b, y, x) + channel + (i - half) * d * a.value.y - half * s.value_col;
          s.weight = MUL ? a.weights.at(b, y, x) + heads.first[v] * taps + i * a.kernel : nullptr;
          s.out = table + i * a.kernel * s.out_col + channel;
          for (int64_t j = 0; j < a.kernel;) {
            const int64_t more = a.kernel - j;
            const auto sum = more >= 7   ? elsa_table_sum<T, 7, MUL>
                             : more >= 4 ? elsa_table_sum<T, 4, MUL>
                             : more >= 3 ? elsa_table_sum<T, 3, MUL>
                                         : elsa_table_sum<T, 1, MUL>;
            sum(s, j);
            j += more >= 7 ? 7 : more >= 4 ? 4 : more >= 3 ? 3 : 1;
          }
        }
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
