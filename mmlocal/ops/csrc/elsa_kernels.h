// The ELSA op. One row of the map after the other, its pixels in blocks whose sums stay in
// registers; a vector holds neighbouring channels of one head.

template <class T>
static int64_t elsa_scratch(const Elsa<T>& a) {
  const int64_t taps = round_up(a.kernel * a.kernel, kLanes<T>);
  return larger(kPixels * a.heads * taps, taps * kLanes<T> + 2 * taps);
}

// Softmax of taps logits; room for whole vectors in w.
template <class T>
static void elsa_softmax(const T* x, T* w, int64_t taps) {
  constexpr int n = kLanes<T>;
  Vec<T> most = broadcast(-kInfinity<T>);
  for (int64_t t = 0; t < taps; t += n) {
    const Vec<T> v = load(x + t, taps - t, -kInfinity<T>);
    store(w + t, v);
    most = v > most ? v : most;
  }
  const T peak = largest<T>(most);
  Vec<T> total{};
  for (int64_t t = 0; t < taps; t += n) {
    const Vec<T> e = exp_scaled(load(w + t) - peak, Vec<T>{});
    store(w + t, e);
    total += e;
  }
  const T scale = 1 / sum<T>(total);
  for (int64_t t = 0; t < taps; t += n) store(w + t, load(w + t) * scale);
}

// Taps [i0, i1) x [j0, j1) of a window.
struct Window {
  int64_t i0, i1, j0, j1;
};

// Steps in memory from tap to tap and from pixel to pixel.
struct Steps {
  int64_t row, col, pixel;
};

// out[p] = sum over taps of (mul * weight + add) * value, for pixels p of a block and U vectors.
template <class T, int P, int U, bool MUL, bool ADD>
static inline void elsa_sum(
    const T* value, Steps value_steps, const T* weight, Steps weight_steps, const T* mul,
    const T* add, int64_t kernel, int64_t table_step, Window window, T* out, int64_t out_step) {
  constexpr int n = kLanes<T>;
  Vec<T> total[P][U] = {};
  for (int64_t i = window.i0; i < window.i1; ++i) {
    for (int64_t j = window.j0; j < window.j1; ++j) {
      const T* v = value + i * value_steps.row + j * value_steps.col;
      const T* w = weight + i * weight_steps.row + j * weight_steps.col;
      const int64_t table = (i * kernel + j) * table_step;
      Vec<T> m[U], a[U];
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        if (MUL) m[u] = load(mul + table + u * n);
        if (ADD) a[u] = load(add + table + u * n);
      }
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const Vec<T> own = broadcast(w[p * weight_steps.pixel]);
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) {
          Vec<T> filter = own;
          if (MUL && ADD) filter = own * m[u] + a[u];
          if (MUL && !ADD) filter = own * m[u];
          if (!MUL && ADD) filter = own + a[u];
          total[p][u] += filter * load(v + p * value_steps.pixel + u * n);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) store(out + p * out_step + u * n, total[p][u]);
  }
}

template <class T, int P, int U>
static inline void elsa_sum_of_kind(
    const T* value, Steps value_steps, const T* weight, Steps weight_steps, const T* mul,
    const T* add, int64_t kernel, int64_t table_step, Window window, T* out, int64_t out_step) {
  const auto kind = mul ? (add ? elsa_sum<T, P, U, true, true> : elsa_sum<T, P, U, true, false>)
                        : (add ? elsa_sum<T, P, U, false, true> : elsa_sum<T, P, U, false, false>);
  kind(value, value_steps, weight, weight_steps, mul, add, kernel, table_step, window, out,
       out_step);
}

// All vectors of one head.
template <class T, int P>
static inline void elsa_head(
    const Elsa<T>& a, int64_t head, const T* value, Steps value_steps, const T* weight,
    Steps weight_steps, Window window, T* out, int64_t out_step) {
  constexpr int n = kLanes<T>;
  const int64_t table_step = a.heads * a.vectors * n;
  const int64_t first = head * a.vectors * n;
  const T* mul = a.mul ? a.mul + first : nullptr;
  const T* add = a.add ? a.add + first : nullptr;
  for (int64_t u = 0; u < a.vectors; u += 2) {
    const auto part = u + 1 < a.vectors ? elsa_sum_of_kind<T, P, 2> : elsa_sum_of_kind<T, P, 1>;
    part(value + first + u * n, value_steps, weight, weight_steps, mul ? mul + u * n : nullptr,
         add ? add + u * n : nullptr, a.kernel, table_step, window, out + first + u * n, out_step);
  }
}

// The taps of a window around x that lie in [0, size); flipped: taps whose windows contain x.
MMLOCAL_INLINE void elsa_clip(
    int64_t x, int64_t size, int64_t kernel, int64_t dilation, int64_t* begin, int64_t* end) {
  const int64_t half = kernel / 2;
  *begin = larger(0, half - x / dilation);
  *end = smaller(kernel, half + (size - 1 - x) / dilation + 1);
}

// The blocks of a row: f(x, pixels, window), with all columns of the window inside for a block.
template <class T, class Block, class Single>
MMLOCAL_INLINE void elsa_blocks(const Elsa<T>& a, Window window, Block block, Single single) {
  const int64_t reach = a.kernel / 2 * a.dilation;
  for (int64_t x = 0; x < a.width;) {
    if (x >= reach && x + kPixels - 1 + reach < a.width) {
      window.j0 = 0;
      window.j1 = a.kernel;
      block(x, window);
      x += kPixels;
    } else {
      elsa_clip(x, a.width, a.kernel, a.dilation, &window.j0, &window.j1);
      single(x, window);
      x += 1;
    }
  }
}

template <class T>
static void elsa_forward(const Elsa<T>& a, T* scratch, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel, padded = round_up(taps, kLanes<T>);
  const int64_t half = a.kernel / 2;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    Window window{};
    elsa_clip(y, a.height, a.kernel, a.dilation, &window.i0, &window.i1);
    const Steps value_steps{a.dilation * a.value.y, a.dilation * a.value.x, a.value.x};

    const auto pixels = [&](int64_t x, auto count, Window window) __attribute__((always_inline)) {
      constexpr int P = decltype(count)::value;
      const T* weight = a.attn.at(b, y, x);
      int64_t pixel_step = a.attn.x, head_step = taps;
      if (a.softmax) {
        for (int p = 0; p < P; ++p) {
          for (int64_t head = 0; head < a.heads; ++head) {
            elsa_softmax(weight + p * pixel_step + head * taps,
                         scratch + (p * a.heads + head) * padded, taps);
          }
        }
        weight = scratch;
        pixel_step = a.heads * padded;
        head_step = padded;
      }
      const T* value = a.value.at(b, y, x) - half * (value_steps.row + value_steps.col);
      const Steps weight_steps{a.kernel, 1, pixel_step};
      for (int64_t head = 0; head < a.heads; ++head) {
        elsa_head<T, P>(a, head, value, value_steps, weight + head * head_step, weight_steps,
                        window, a.out.at(b, y, x), a.out.x);
      }
    };
    elsa_blocks(
        a, window, [&](int64_t x, Window w) { pixels(x, Number<kPixels>{}, w); },
        [&](int64_t x, Window w) { pixels(x, Number<1>{}, w); });
  }
}

template <class T>
static void elsa_weights(const Elsa<T>& a, T* scratch, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t x = 0; x < a.width; ++x) {
      const T* logits = a.attn.at(row / a.height, row % a.height, x);
      T* weights = a.weights.at(row / a.height, row % a.height, x);
      for (int64_t head = 0; head < a.heads; ++head) {
        elsa_softmax(logits + head * taps, scratch, taps);
        __builtin_memcpy(weights + head * taps, scratch, taps * sizeof(T));
      }
    }
  }
}

// A pixel gathers from the windows that contain it: the same sum, with the gradient as value, and
// with the weights of the neighbour for the opposite tap.
template <class T>
static void elsa_grad_value(const Elsa<T>& a, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  const Steps value_steps{-a.dilation * a.grad.y, -a.dilation * a.grad.x, a.grad.x};
  const Steps weight_steps{a.kernel - a.dilation * a.weights.y, 1 - a.dilation * a.weights.x,
                           a.weights.x};
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    Window window{};
    // Tap i reaches from the row below when it is a low one.
    elsa_clip(a.height - 1 - y, a.height, a.kernel, a.dilation, &window.i0, &window.i1);

    const auto pixels = [&](int64_t x, auto count, Window window) __attribute__((always_inline)) {
      constexpr int P = decltype(count)::value;
      const T* grad = a.grad.at(b, y, x) - half * (value_steps.row + value_steps.col);
      const T* weight = a.weights.at(b, y, x) +
                        half * a.dilation * (a.weights.y + a.weights.x);
      for (int64_t head = 0; head < a.heads; ++head) {
        elsa_head<T, P>(a, head, grad, value_steps, weight + head * taps, weight_steps, window,
                        a.grad_value.at(b, y, x), a.grad_value.x);
      }
    };
    elsa_blocks(
        a, window, [&](int64_t x, Window w) { pixels(x, Number<kPixels>{}, w); },
        [&](int64_t x, Window w) {
          elsa_clip(a.width - 1 - x, a.width, a.kernel, a.dilation, &w.j0, &w.j1);
          pixels(x, Number<1>{}, w);
        });
  }
}

// products[t] (+)= grad * (mul *) value for the taps of a window and U vectors of a head.
template <class T, int U, bool MUL, bool MORE>
static inline void elsa_products(
    const Elsa<T>& a, const T* grad, const T* value, const T* mul, Window window,
    Vec<T>* products) {
  constexpr int n = kLanes<T>;
  const int64_t table_step = a.heads * a.vectors * n;
  Vec<T> g[U];
  for (int u = 0; u < U; ++u) g[u] = load(grad + u * n);
  for (int64_t i = window.i0; i < window.i1; ++i) {
    for (int64_t j = window.j0; j < window.j1; ++j) {
      const int64_t tap = i * a.kernel + j;
      const T* v = value + a.dilation * (i * a.value.y + j * a.value.x);
      Vec<T> product = MORE ? products[tap] : Vec<T>{};
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        const Vec<T> own = MUL ? g[u] * load(mul + tap * table_step + u * n) : g[u];
        product += own * load(v + u * n);
      }
      products[tap] = product;
    }
  }
}

template <class T, int U>
static inline void elsa_products_of_kind(
    const Elsa<T>& a, const T* grad, const T* value, const T* mul, Window window, bool more,
    Vec<T>* products) {
  const auto kind =
      mul ? (more ? elsa_products<T, U, true, true> : elsa_products<T, U, true, false>)
          : (more ? elsa_products<T, U, false, true> : elsa_products<T, U, false, false>);
  kind(a, grad, value, mul, window, products);
}

// dots[t] = sum of the lanes of products[t], with whole vectors of dots; destroys products.
template <class T>
MMLOCAL_INLINE void elsa_dots(Vec<T>* products, T* dots, int64_t taps) {
  constexpr int n = kLanes<T>;
  int64_t t = 0;
  for (; t + n <= taps; t += n) store(dots + t, sums_of<T>(products + t));
  if (t == taps) return;
  if (taps - t > 2) {
    for (int64_t rest = taps; rest < t + n; ++rest) products[rest] = Vec<T>{};
    store(dots + t, sums_of<T>(products + t));
  } else {  // as for windows of 7x7, with one tap more than three vectors of 16
    store(dots + t, Vec<T>{});
    for (; t < taps; ++t) dots[t] = sum<T>(products[t]);
  }
}

template <class T>
static void elsa_grad_attn(const Elsa<T>& a, T* scratch, int64_t begin, int64_t end) {
  constexpr int n = kLanes<T>;
  const int64_t taps = a.kernel * a.kernel, padded = round_up(taps, n), half = a.kernel / 2;
  Vec<T>* products = reinterpret_cast<Vec<T>*>(scratch);  // (padded)
  T* dots = scratch + padded * n;                          // (padded)
  T* weights = dots + padded;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    Window window{};
    elsa_clip(y, a.height, a.kernel, a.dilation, &window.i0, &window.i1);
    for (int64_t x = 0; x < a.width; ++x) {
      elsa_clip(x, a.width, a.kernel, a.dilation, &window.j0, &window.j1);
      const bool whole = (window.i1 - window.i0) * (window.j1 - window.j0) == taps;
      const T* corner = a.value.at(b, y, x) - half * a.dilation * (a.value.y + a.value.x);
      for (int64_t head = 0; head < a.heads; ++head) {
        if (!whole) __builtin_memset(products, 0, taps * sizeof(Vec<T>));
        for (int64_t u = 0; u < a.vectors; u += 2) {
          const int64_t first = (head * a.vectors + u) * n;
          const auto part = u + 1 < a.vectors ? elsa_products_of_kind<T, 2>
                                              : elsa_products_of_kind<T, 1>;
          part(a, a.grad.at(b, y, x) + first, corner + first, a.mul ? a.mul + first : nullptr,
               window, u > 0, products);
        }
        elsa_dots<T>(products, dots, taps);
        const T* own = a.weights.at(b, y, x) + head * taps;
        T* out = a.grad_attn.at(b, y, x) + head * taps;
        T subtract = 0;
        if (a.softmax) {
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

// sum over pixels [x0, x1) of (weight *) grad * value, for J taps of one row of the window.
template <class T, int J, bool MUL>
static inline void elsa_table_sum(
    const T* grad, const T* value, const T* weight, const Elsa<T>& a, int64_t x0, int64_t x1,
    T* out, int64_t out_step) {
  Vec<T> total[J] = {};
  for (int64_t x = x0; x < x1; ++x) {
    const Vec<T> g = load(grad + x * a.grad.x);
#pragma GCC unroll 8
    for (int j = 0; j < J; ++j) {
      Vec<T> product = g * load(value + x * a.value.x + j * a.dilation * a.value.x);
      if (MUL) product *= broadcast(weight[x * a.weights.x + j]);
      total[j] += product;
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < J; ++j) store(out + j * out_step, load(out + j * out_step) + total[j]);
}

template <class T, bool MUL>
static void elsa_grad_table(const Elsa<T>& a, T* table, int64_t begin, int64_t end) {
  constexpr int n = kLanes<T>, J = 4;
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  const int64_t out_step = a.heads * a.vectors * n;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    Window window{};
    elsa_clip(y, a.height, a.kernel, a.dilation, &window.i0, &window.i1);
    for (int64_t vector = 0; vector < a.heads * a.vectors; ++vector) {
      const T* grad = a.grad.at(b, y, 0) + vector * n;
      const T* head_weight = MUL ? a.weights.at(b, y, 0) + vector / a.vectors * taps : nullptr;
      for (int64_t i = window.i0; i < window.i1; ++i) {
        const T* corner = a.value.at(b, y, 0) + vector * n + (i - half) * a.dilation * a.value.y -
                          half * a.dilation * a.value.x;
        for (int64_t j = 0; j < a.kernel;) {
          // The pixels for which the first and the last tap of a group lie in the map.
          const auto begin_of = [&](int64_t j) { return larger(0, (half - j) * a.dilation); };
          const auto end_of = [&](int64_t j) {
            return smaller(a.width, a.width + (half - j) * a.dilation);
          };
          const int64_t count = j + J <= a.kernel ? J : 1;
          const int64_t x0 = begin_of(j), x1 = end_of(j + count - 1);
          const auto sums = [&](auto size, int64_t j, int64_t x0, int64_t x1) {
            elsa_table_sum<T, decltype(size)::value, MUL>(
                grad, corner + j * a.dilation * a.value.x,
                MUL ? head_weight + i * a.kernel + j : nullptr, a, x0, x1,
                table + (i * a.kernel + j) * out_step + vector * n, out_step);
          };
          if (count == 1 || x0 >= x1) {
            for (int64_t t = j; t < j + count; ++t) sums(Number<1>{}, t, begin_of(t), end_of(t));
          } else {
            sums(Number<J>{}, j, x0, x1);
            for (int64_t t = j; t < j + count; ++t) {
              sums(Number<1>{}, t, begin_of(t), x0);
              sums(Number<1>{}, t, x1, end_of(t));
            }
          }
          j += count;
        }
      }
    }
  }
}

template <class T>
static void elsa_grad_ghost(const Elsa<T>& a, T* mul, T* add, int64_t begin, int64_t end) {
  if (mul) elsa_grad_table<T, true>(a, mul, begin, end);
  if (add) elsa_grad_table<T, false>(a, add, begin, end);
}
