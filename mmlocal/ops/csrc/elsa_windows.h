// ELSA: the parts that all of its kernels share. A kernel takes one row of the map after the other.
// A vector holds neighbouring channels of a pixel.

// Taps [i0, i1) x [j0, j1) of a window.
struct Window {
  int64_t i0, i1, j0, j1;
};

// Steps in memory from tap to tap and from pixel to pixel.
struct Steps {
  int64_t row, col, pixel;
};

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
  T* weights;        // (kPixels, heads, padded)
  T* own;            // (padded)
  T* dots;           // (heads, padded)
  Vec<T>* products;  // (padded)

  ElsaScratch(const Elsa<T>& a, T* memory)
      : padded(round_up(a.kernel * a.kernel, kLanes<T>)),
        memory{memory},
        heads(a.heads, a.head_dims, this->memory) {
    weights = this->memory.take(kPixels * a.heads * padded);
    own = this->memory.take(padded);
    dots = this->memory.take(a.heads * padded);
    products = this->memory.template take<Vec<T>>(padded);
  }
};

template <class T>
static int64_t elsa_scratch(const Elsa<T>& a) {
  return ElsaScratch<T>(a, nullptr).memory.used;
}

// Softmax of `taps` logits. w has room for whole vectors.
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

// The softmax of all logits, for the backward pass.
template <class T>
static void elsa_weights(const Elsa<T>& a, T* memory, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel;
  const ElsaScratch<T> scratch(a, memory);
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t x = 0; x < a.width; ++x) {
      const T* logits = a.attn.at(row / a.height, row % a.height, x);
      T* weights = a.weights.at(row / a.height, row % a.height, x);
      for (int64_t head = 0; head < a.heads; ++head) {
        elsa_softmax(logits + head * taps, scratch.own, taps);
        __builtin_memcpy(weights + head * taps, scratch.own, taps * sizeof(T));
      }
    }
  }
}
