// Outlook: the forward pass and its gradients.

// out[own] += sum over others of weight[own, other] * value[other], for the pixels of one window.
template <class T>
struct OutlookSum {
  const T *value, *weights;  // of the window's first tap; of the scratch memory
  T* out;
  const OutlookTaps<T>*own, *other;
  int64_t taps;
};

// Takes P pixels from `first` on, and U vectors of one head from `vector` on. With SHARED, takes
// one vector that several heads share.
template <class T, int P, int U, bool SHARED>
static inline void outlook_sum(const OutlookSum<T>& sum, const Heads<T>& heads, int64_t vector,
                               int64_t first) {
  constexpr int n = kLanes<T>;
  const OutlookSum<T> s = sum;  // a copy, whose members the compiler keeps in registers
  const int64_t head = heads.first[vector], count = heads.last[vector] - head + 1;
  const int64_t* pixel = s.other->pixel;
  const int64_t* weight = s.other->weight + head * s.taps;
  const T* value = s.value + vector * n;
  const T* own[P];
  T* out[P];
  Vec<T> total[P][U];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    own[p] = s.weights + s.own->weight[head * s.taps + first + p];
    out[p] = s.out + s.own->pixel[first + p] + vector * n;
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) total[p][u] = load(out[p] + u * n);
  }
  for (int64_t o = 0; o < s.other->count; ++o) {
    Vec<T> v[U];
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) v[u] = load(value + pixel[o] + u * n);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      Vec<T> w = broadcast(own[p][weight[o]]);
      if (SHARED) {
        for (int64_t h = 1; h < count; ++h) {
          const auto mine = heads.lane[vector] == static_cast<typename Types<T>::Int>(h);
          const int64_t at = s.own->weight[(head + h) * s.taps + first + p];
          w = mine ? broadcast(s.weights[at + weight[h * s.taps + o]]) : w;
        }
      }
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) total[p][u] += w * v[u];
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) store(out[p] + u * n, total[p][u]);
  }
}

// The same for all pixels and channels.
template <class T>
static void outlook_sums(const OutlookSum<T>& s, const Heads<T>& heads) {
  constexpr int P = 3;
  for (int64_t v = 0; v < heads.vectors;) {
    const bool pair = heads.is_pair(v), shared = !pair && heads.is_shared(v);
    const auto some = pair     ? outlook_sum<T, P, 2, false>
                      : shared ? outlook_sum<T, P, 1, true>
                               : outlook_sum<T, P, 1, false>;
    const auto one = pair     ? outlook_sum<T, 1, 2, false>
                     : shared ? outlook_sum<T, 1, 1, true>
                              : outlook_sum<T, 1, 1, false>;
    int64_t p = 0;
    for (; p + P <= s.own->count; p += P) some(s, heads, v, p);
    for (; p < s.own->count; ++p) one(s, heads, v, p);
    v += pair ? 2 : 1;
  }
}

// Sets the rows [begin, end) of a map to zero.
template <class T>
static void outlook_clear(const Outlook<T>& a, const Map<T>& map, int64_t vectors, int64_t begin,
                          int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t x = 0; x < a.width; ++x) {
      T* pixel = map.at(row / a.height, row % a.height, x);
      __builtin_memset(pixel, 0, vectors * sizeof(Vec<T>));
    }
  }
}

template <class T>
static void outlook_forward(const Outlook<T>& a, T* memory, int64_t begin, int64_t end) {
  OutlookScratch<T> scratch(a, memory);
  OutlookClip last{};
  OutlookSum<T> s{};
  s.weights = reinterpret_cast<const T*>(scratch.weights);
  s.own = &scratch.own;
  s.other = &scratch.other;
  s.taps = scratch.taps;
  const Map<const T> out{a.out.data, a.out.b, a.out.y, a.out.x};
  outlook_clear(a, a.out, scratch.heads.vectors, begin, end);
  outlook_windows(a, begin, end, [&](int64_t b, int64_t i, int64_t j, const OutlookClip& clip) {
    if (!(clip == last)) {
      outlook_list(a, clip, clip.own0, clip.own1, out, true, &scratch.own);
      outlook_list(a, clip, clip.i0, clip.i1, a.value, false, &scratch.other);
      last = clip;
    }
    outlook_weights(a, a.attn.at(b, i, j), scratch);
    const int64_t y = i * a.stride - a.padding, x = j * a.stride - a.padding;
    s.value = a.value.at(b, y, x);
    s.out = a.out.at(b, y, x);
    outlook_sums(s, scratch.heads);
  });
}

// The channels of one row of the matrices: vectors [begin, end) of its head.
template <class T>
struct OutlookRow {
  const T* grad;  // null if the target lies outside the map, or there is no such row
  int64_t begin, end;
  typename Types<T>::Int head;
};

// products[i] = the product of grad at the target of row i and value at a source, in all lanes of
// the row's head. With V, heads have V vectors each. Without, several heads may share a vector.
template <class T, int V>
MMLOCAL_INLINE void outlook_products(const OutlookRow<T>* rows, const T* value,
                                     const Heads<T>& heads, Vec<T>* products) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) {
    Vec<T> product{};
    if (rows[i].grad && V > 0) {
      const T *g = rows[i].grad + rows[i].begin * n, *v = value + rows[i].begin * n;
#pragma GCC unroll 4
      for (int c = 0; c < V; ++c) product += load(g + c * n) * load(v + c * n);
    } else if (rows[i].grad) {
      for (int64_t c = rows[i].begin; c < rows[i].end; ++c) {
        const Vec<T> more = load(rows[i].grad + c * n) * load(value + c * n);
        const auto own = static_cast<typename Types<T>::Int>(rows[i].head - heads.first[c]);
        product += heads.lane[c] == own ? more : Vec<T>{};
      }
    }
    products[i] = product;
  }
}

// slopes[row, s] = the product of grad at the row's target and value at source s, over the channels
// of the row's head. It is 0 if one of them lies outside the map.
template <class T, int V>
static void outlook_slopes(const Outlook<T>& a, const OutlookScratch<T>& scratch, const T* grad,
                           const T* value, const OutlookClip& clip) {
  constexpr int n = kLanes<T>;
  const int64_t taps = scratch.taps;
  const auto is_inside = [&](int64_t tap) {
    const int64_t i = tap / a.kernel, j = tap % a.kernel;
    return i >= clip.i0 && i < clip.i1 && j >= clip.j0 && j < clip.j1;
  };
  for (int64_t block = 0; block < scratch.blocks; ++block) {
    OutlookRow<T> rows[n];
    for (int i = 0; i < n; ++i) {
      const int64_t row = block * n + i, head = row / taps, target = row % taps;
      const bool there = row < scratch.rows && is_inside(target);
      rows[i].grad =
          there ? grad + target / a.kernel * a.grad.y + target % a.kernel * a.grad.x : nullptr;
      rows[i].begin = head * a.head_dims / n;
      rows[i].end = ((head + 1) * a.head_dims - 1) / n + 1;
      rows[i].head = head;
    }
    for (int64_t s = 0; s < taps; ++s) {
      Vec<T>& out = scratch.slopes[block * taps + s];
      if (!is_inside(s)) {
        out = Vec<T>{};
        continue;
      }
      Vec<T> products[n];
      const T* v = value + s / a.kernel * a.value.y + s % a.kernel * a.value.x;
      outlook_products<T, V>(rows, v, scratch.heads, products);
      out = sums_of<T>(products);
    }
  }
}

// The gradient of the logits or weights of a window.
template <class T>
static void outlook_grad_attn(const Outlook<T>& a, const OutlookScratch<T>& scratch, T* out) {
  constexpr int n = kLanes<T>;
  const int64_t taps = scratch.taps;
  for (int64_t block = 0; block < scratch.blocks; ++block) {
    const Vec<T>* w = scratch.weights + block * taps;
    Vec<T>* slope = scratch.slopes + block * taps;
    if (a.softmax) {
      Vec<T> mean{};
      for (int64_t s = 0; s < taps; ++s) mean += w[s] * slope[s];
      for (int64_t s = 0; s < taps; ++s) slope[s] = w[s] * (slope[s] - mean);
    }
    const int64_t rows = smaller(n, scratch.rows - block * n);
    T* numbers = out + block * n * taps;
    for (int64_t s = 0; s < taps; ++s) {
      const T* lanes = reinterpret_cast<const T*>(slope + s);
      for (int64_t i = 0; i < rows; ++i) numbers[i * taps + s] = lanes[i];
    }
  }
}

template <class T>
static void outlook_backward(const Outlook<T>& a, T* memory, int64_t begin, int64_t end) {
  OutlookScratch<T> scratch(a, memory);
  OutlookClip last{};
  OutlookSum<T> s{};
  s.weights = reinterpret_cast<const T*>(scratch.weights);
  s.own = &scratch.own;
  s.other = &scratch.other;
  s.taps = scratch.taps;
  const auto slopes = a.head_dims == 2 * kLanes<T>   ? outlook_slopes<T, 2>
                      : a.head_dims == kLanes<T>     ? outlook_slopes<T, 1>
                      : a.head_dims == 4 * kLanes<T> ? outlook_slopes<T, 4>
                                                     : outlook_slopes<T, 0>;
  const Map<const T> out{a.grad_value.data, a.grad_value.b, a.grad_value.y, a.grad_value.x};
  if (out.data) outlook_clear(a, a.grad_value, scratch.heads.vectors, begin, end);
  outlook_windows(a, begin, end, [&](int64_t b, int64_t i, int64_t j, const OutlookClip& clip) {
    outlook_weights(a, a.attn.at(b, i, j), scratch);
    const int64_t y = i * a.stride - a.padding, x = j * a.stride - a.padding;
    if (out.data) {
      if (!(clip == last)) {
        outlook_list(a, clip, clip.own0, clip.own1, out, false, &scratch.own);
        outlook_list(a, clip, clip.i0, clip.i1, a.grad, true, &scratch.other);
        last = clip;
      }
      s.value = a.grad.at(b, y, x);
      s.out = a.grad_value.at(b, y, x);
      outlook_sums(s, scratch.heads);
    }
    // The window belongs to the owner of its first row in the map.
    if (a.grad_attn.data && clip.own0 == clip.i0 && clip.own0 < clip.own1) {
      slopes(a, scratch, a.grad.at(b, y, x), a.value.at(b, y, x), clip);
      outlook_grad_attn(a, scratch, a.grad_attn.at(b, i, j));
    }
  });
}
