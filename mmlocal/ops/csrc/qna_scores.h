// QnA: exponentials, and the attention of windows that are taken exactly.

// Computes E of one token. Numbers behind the last table mean nothing.
template <class T>
static inline void exponentials(const QnaCall<T>& a, const Sizes<T>& s, int64_t b, int64_t y,
                                int64_t x, T* out) {
  const T* scores = a.scores.at(b, y, x);
  const T *shift = a.shift + b * s.padded, *power = a.power + b * s.padded;
  for (int64_t i = 0; i < s.padded; i += kLanes<T>) {
    const int64_t t = s.whole(i);
    const Vec<T> score = load(scores + t, s.tables - t, T(0));
    store(out + t, exp_scaled(score - load(shift + t), load(power + t)));
  }
}

// Calls f(tap, y, x) for each token of a window that lies in the map.
template <class T, class F>
MMLOCAL_INLINE void over_tokens(const QnaCall<T>& a, int64_t oy, int64_t ox, const F& f) {
  const int64_t y0 = oy * a.stride - a.padding, x0 = ox * a.stride - a.padding;
  for (int64_t i = larger(0, -y0); i < smaller(a.kernel, a.height - y0); ++i) {
    for (int64_t j = larger(0, -x0); j < smaller(a.kernel, a.width - x0); ++j) {
      f(i * a.kernel + j, y0 + i, x0 + j);
    }
  }
}

template <class T>
MMLOCAL_INLINE T tap_weight(const QnaCall<T>& a, int64_t table, int64_t tap) {
  return a.tap_weight ? a.tap_weight[table * a.kernel * a.kernel + tap] : T(1);
}

// Computes the attention of one table in one window, relative to the maximum of the window. It is 0
// if the window has no token.
template <class T>
static void exact_attention(const QnaCall<T>& a, int64_t b, int64_t oy, int64_t ox, int64_t table,
                            T* attn) {
  const int64_t taps = a.kernel * a.kernel;
  T peak = -kInfinity<T>;
  for (int64_t t = 0; t < taps; ++t) attn[t] = -kInfinity<T>;
  over_tokens(a, oy, ox, [&](int64_t t, int64_t y, int64_t x) {
    attn[t] = a.scores.at(b, y, x)[table];
    peak = attn[t] > peak ? attn[t] : peak;
  });
  // Any finite number will do for a window without tokens.
  if (peak == -kInfinity<T>) peak = 0;
  T most = -kInfinity<T>;
  for (int64_t t = 0; t < taps; ++t) {
    // The order matters: added to a large score, the position would lose its digits.
    attn[t] -= peak;
    if (a.rel_pos) attn[t] += a.rel_pos[table * taps + t];
    most = attn[t] > most ? attn[t] : most;
  }
  if (most == -kInfinity<T>) most = 0;
  T total = 0;
  for (int64_t t = 0; t < taps; ++t) {
    attn[t] = sizeof(T) == 4 ? T(__builtin_expf(attn[t] - most)) : T(__builtin_exp(attn[t] - most));
    total += attn[t];
  }
  if (total == 0) return;
  for (int64_t t = 0; t < taps; ++t) attn[t] /= total;
}

// The gradient of one window, from the first channel of the table's head on.
template <class T>
MMLOCAL_INLINE const T* grad_of_table(const QnaCall<T>& a, int64_t b, int64_t oy, int64_t ox,
                                      int64_t table) {
  const int64_t first = table % a.heads * (a.channels / a.heads);
  return a.grad.at(b, oy, ox) + table / a.heads * a.grad.query + first;
}

// For one table and one window that is taken exactly: computes the attention and the product of
// gradient and value for each tap, and returns the mean of the products.
template <class T>
static T exact_products(const QnaCall<T>& a, int64_t b, int64_t oy, int64_t ox, int64_t table,
                        T* attn, T* dots) {
  exact_attention(a, b, oy, ox, table, attn);
  const int64_t head_dims = a.channels / a.heads, first = table % a.heads * head_dims;
  const T* grad = grad_of_table(a, b, oy, ox, table);
  T mean = 0;
  for (int64_t t = 0; t < a.kernel * a.kernel; ++t) dots[t] = 0;
  over_tokens(a, oy, ox, [&](int64_t t, int64_t y, int64_t x) {
    const T* value = a.value.at(b, y, x) + first;
    for (int64_t c = 0; c < head_dims; ++c) dots[t] += grad[c] * value[c];
    mean += attn[t] * tap_weight(a, table, t) * dots[t];
  });
  return mean;
}
