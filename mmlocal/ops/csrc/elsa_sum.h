// ELSA: the sum over the taps of a window, for a block of pixels at a time. The sums of a block
// stay in registers. The forward pass and the gradient of the values are such sums.

// out[p] = sum over taps of (mul * weight + add) * value, for the pixels p of a block.
template <class T>
struct ElsaSum {
  const T* value;  // this and the other pointers are at the first tap
  Steps value_steps;
  const T* weight;
  Steps weight_steps;
  int64_t head_step;   // from the weights of a head to the next one
  const T *mul, *add;  // null where there is no such ghost head
  int64_t table_row, table_col;
  Window window;
  T* out;
  int64_t out_pixel;
};

// For each pixel of a block: a vector with the weight of each lane's own head.
template <class T, int P>
MMLOCAL_INLINE void lane_weights(const ElsaSum<T>& s, const T* weight, int64_t heads,
                                 const IntVec<T>& lane, Vec<T>* own) {
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) own[p] = broadcast(weight[p * s.weight_steps.pixel]);
  for (int64_t h = 1; h < heads; ++h) {
    const IntVec<T> mine = lane == static_cast<typename Types<T>::Int>(h);
    weight += s.head_step;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
      own[p] = mine ? broadcast(weight[p * s.weight_steps.pixel]) : own[p];
    }
  }
}

// Takes U vectors of one head from `vector` on. With SHARED, takes one vector that several heads
// share.
template <class T, int P, int U, bool SHARED, bool MUL, bool ADD>
static inline void elsa_sum(const ElsaSum<T>& sum, const Heads<T>& heads, int64_t vector) {
  constexpr int n = kLanes<T>;
  const ElsaSum<T> s = sum;  // a copy, whose members the compiler keeps in registers
  const int64_t head = heads.first[vector], count = heads.last[vector] - head + 1;
  const T* value = s.value + vector * n;
  const T* weight = s.weight + head * s.head_step;
  Vec<T> total[P][U] = {};
  for (int64_t i = s.window.i0; i < s.window.i1; ++i) {
    for (int64_t j = s.window.j0; j < s.window.j1; ++j) {
      const T* v = value + i * s.value_steps.row + j * s.value_steps.col;
      const T* w = weight + i * s.weight_steps.row + j * s.weight_steps.col;
      const int64_t table = vector * n + i * s.table_row + j * s.table_col;
      Vec<T> m[U], a[U], shared[P];
#pragma GCC unroll 2
      for (int u = 0; u < U; ++u) {
        if (MUL) m[u] = load(s.mul + table + u * n);
        if (ADD) a[u] = load(s.add + table + u * n);
      }
      if (SHARED) lane_weights<T, P>(s, w, count, heads.lane[vector], shared);
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const Vec<T> own = SHARED ? shared[p] : broadcast(w[p * s.weight_steps.pixel]);
#pragma GCC unroll 2
        for (int u = 0; u < U; ++u) {
          Vec<T> filter = own;
          if (MUL && ADD) filter = own * m[u] + a[u];
          if (MUL && !ADD) filter = own * m[u];
          if (!MUL && ADD) filter = own + a[u];
          total[p][u] += filter * load(v + p * s.value_steps.pixel + u * n);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
    for (int u = 0; u < U; ++u) store(s.out + vector * n + p * s.out_pixel + u * n, total[p][u]);
  }
}

template <class T, int P, int U, bool SHARED>
static inline void elsa_sum_of_kind(const ElsaSum<T>& s, const Heads<T>& heads, int64_t vector) {
  const auto kind =
      s.mul
          ? (s.add ? elsa_sum<T, P, U, SHARED, true, true> : elsa_sum<T, P, U, SHARED, true, false>)
          : (s.add ? elsa_sum<T, P, U, SHARED, false, true>
                   : elsa_sum<T, P, U, SHARED, false, false>);
  kind(s, heads, vector);
}

// The same for all channels.
template <class T, int P>
static inline void elsa_sums(const ElsaSum<T>& s, const Heads<T>& heads) {
  for (int64_t v = 0; v < heads.vectors;) {
    const bool pair = heads.is_pair(v);
    const auto part = pair                 ? elsa_sum_of_kind<T, P, 2, false>
                      : heads.is_shared(v) ? elsa_sum_of_kind<T, P, 1, true>
                                           : elsa_sum_of_kind<T, P, 1, false>;
    part(s, heads, v);
    v += pair ? 2 : 1;
  }
}

// The sums of a row of pixels. s holds the rows of their windows. begin(x, P) sets the rest of s
// for P pixels from x on. clip(x) sets the columns of the window. Blocks lie so far
// inside the map that their windows have all columns.
template <class T, class Begin, class Clip>
MMLOCAL_INLINE void elsa_sum_row(const Elsa<T>& a, const Heads<T>& heads, ElsaSum<T>& s,
                                 const Begin& begin, const Clip& clip) {
  const int64_t reach = a.kernel / 2 * a.dilation;
  for (int64_t x = 0; x < a.width;) {
    if (x >= reach && x + kPixels - 1 + reach < a.width) {
      begin(x, kPixels);
      s.window.j0 = 0;
      s.window.j1 = a.kernel;
      elsa_sums<T, kPixels>(s, heads);
      x += kPixels;
    } else {
      begin(x, 1);
      clip(x);
      elsa_sums<T, 1>(s, heads);
      x += 1;
    }
  }
}
