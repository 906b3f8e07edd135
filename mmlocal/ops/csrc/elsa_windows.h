// ELSA: the parts that all of its kernels share. A kernel takes one row of the map after the other.
// A vector holds neighbouring channels of a pixel.

// Taps [i0, i1) x [j0, j1) of a window.
struct Window {
  int64_t i0, i1, j0, j1;
};

// The size of a tile, whose windows fit into the cache.
constexpr int kTileRows = 2, kTileCols = 32;

// The taps of a window around x that lie in [0, size).
MMLOCAL_INLINE void elsa_clip(int64_t x, int64_t size, int64_t kernel, int64_t dilation,
                              int64_t* begin, int64_t* end) {
  const int64_t half = kernel / 2;
  *begin = larger(0, half - x / dilation);
  *end = smaller(kernel, half + (size - 1 - x) / dilation + 1);
}

// The memory of one thread, large enough for each of the kernels.
template <class T>
struct ElsaScratch {
  const int64_t padded;  // taps of a head, rounded up to whole vectors
  Scratch<T> memory;
  const Heads<T> heads;
  T* weights;        // (kTileRows, kTileCols, heads, padded)
  T* packed;         // values of a tile
  T* dots;           // (2, heads, padded)
  Vec<T>* products;  // (2, padded)

  ElsaScratch(const Elsa<T>& a, T* memory)
      : padded(round_up(a.kernel * a.kernel, kLanes<T>)),
        memory{memory},
        heads(a.heads, a.head_dims, this->memory) {
    weights = this->memory.take(kTileRows * kTileCols * a.heads * padded);
    packed =
        this->memory.take((kTileRows + a.kernel - 1) * (kTileCols + a.kernel - 1) * 2 * kLanes<T>);
    dots = this->memory.take(2 * a.heads * padded);
    products = this->memory.template take<Vec<T>>(2 * padded);
  }
};

template <class T>
static int64_t elsa_scratch(const Elsa<T>& a) {
  return ElsaScratch<T>(a, nullptr).memory.used;
}

// Softmax of `taps` logits for each of `count` pixels. w may be x. No number beyond the taps is
// read or written: the last vector of a pixel overlaps the one before.
template <class T>
static void elsa_softmax(const T* x, int64_t x_pixel, T* w, int64_t w_pixel, int64_t count,
                         int64_t taps) {
  constexpr int n = kLanes<T>;
  const int64_t last = larger(0, taps - n);
  const auto known = static_cast<typename Types<T>::Int>(taps < n ? 0 : n - taps % n);
  const IntVec<T> fresh = numbers<T>() >= known;
  const auto load_last = [&](const T* p) {
    return taps < n ? load(p, taps, -kInfinity<T>) : load(p + last);
  };
  const auto store_last = [&](T* p, Vec<T> v) {
    return taps < n ? store(p, v, taps) : store(p + last, v);
  };
  alignas(64) T peak[n], scale[n];
  Vec<T> all[n] = {};
  for (; count > 0; count -= n, x += n * x_pixel, w += n * w_pixel) {
    const int64_t pixels = smaller(count, n);
    for (int64_t p = 0; p < pixels; ++p) {
      const T* from = x + p * x_pixel;
      Vec<T> most = load_last(from);
      for (int64_t t = 0; t < last; t += n) {
        const Vec<T> v = load(from + t);
        most = v > most ? v : most;
      }
      all[p] = most;
    }
    store(peak, largest_of<T>(all));
    for (int64_t p = 0; p < pixels; ++p) {
      const T* from = x + p * x_pixel;
      T* to = w + p * w_pixel;
      const Vec<T> shift = broadcast(peak[p]), end = exp_negative(load_last(from) - shift);
      Vec<T> total = fresh ? end : Vec<T>{};
      for (int64_t t = 0; t < last; t += n) {
        const Vec<T> e = exp_negative(load(from + t) - shift);
        store(to + t, e);
        total += e;
      }
      store_last(to, end);
      all[p] = total;
    }
    store(scale, 1 / sums_of<T>(all));
    for (int64_t p = 0; p < pixels; ++p) {
      T* to = w + p * w_pixel;
      const Vec<T> end = load_last(to) * scale[p];
      for (int64_t t = 0; t < last; t += n) store(to + t, load(to + t) * scale[p]);
      store_last(to, end);
    }
  }
}

// The same for all heads. The weights of a pixel are at w + head * w_head.
template <class T>
static void elsa_softmax_of_heads(const Elsa<T>& a, const T* x, int64_t x_pixel, T* w,
                                  int64_t w_pixel, int64_t w_head, int64_t count) {
  const int64_t taps = a.kernel * a.kernel;
  if (x_pixel == a.heads * taps && w_pixel == a.heads * w_head) {  // no gaps between pixels
    return elsa_softmax(x, taps, w, w_head, count * a.heads, taps);
  }
  for (int64_t p = 0; p < count; ++p) {
    elsa_softmax(x + p * x_pixel, taps, w + p * w_pixel, w_head, a.heads, taps);
  }
}

// The softmax of all logits, for the backward pass.
template <class T>
static void elsa_weights(const Elsa<T>& a, T*, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    elsa_softmax_of_heads(a, a.attn.at(row / a.height, row % a.height, 0), a.attn.x,
                          a.weights.at(row / a.height, row % a.height, 0), a.weights.x,
                          a.kernel * a.kernel, a.width);
  }
}
