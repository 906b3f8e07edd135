// Deformable attention: the output, and what both passes need of it.

// A task is a head and some queries, which lie side by side in the image as a rule: then they read
// the same pixels.
template <class T>
static int64_t deformable_tasks(const Deformable<T>& a) {
  return a.heads * ceil_div(a.queries, a.block);
}

template <class T>
static int64_t deformable_scratch(const Deformable<T>& a) {
  return a.block * (a.channels + 2) + 2 * kLanes<T>;
}

// Calls f(head, first query, end) for the tasks [begin, end).
template <class T, class F>
MMLOCAL_INLINE void deformable_over_tasks(const Deformable<T>& a, int64_t begin, int64_t end,
                                          const F& f) {
  const int64_t blocks = ceil_div(a.queries, a.block);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t first = task % blocks * a.block;
    f(task / blocks, first, smaller(a.queries, first + a.block));
  }
}

// The softmax of the queries [begin, end), if there is one. The loops over queries that follow jump
// through positions and weights, so this fetches them in order.
template <class T>
static void deformable_softmaxes(const Deformable<T>& a, int64_t head, int64_t begin, int64_t end,
                                 DeformableSoftmax<T>* softmaxes) {
  const int64_t samples = a.maps * a.points;
  for (int64_t query = begin; query < end; ++query) {
    const int64_t at = (query * a.heads + head) * samples;
    const auto fetch = [](const T* from, int64_t count) {
      for (int64_t i = 0; i < count; i += 64 / sizeof(T)) __builtin_prefetch(from + i, 0, 2);
    };
    fetch(a.positions + 2 * at, 2 * samples);
    if (a.softmax) {
      softmaxes[query - begin] = deformable_softmax(a.weights + at, samples);
    } else {
      fetch(a.weights + at, samples);
    }
  }
}

// Adds the weighted corners of some samples to `out`, for N vectors of channels.
template <int N, class T>
static void deformable_mix(const T* value, int64_t stride, const DeformableCorners<T>& corners,
                           const DeformableFactors<T>& factors, int64_t samples, T* out) {
  constexpr int n = kLanes<T>;
  // Each sum waits for the one before, so there are two.
  Vec<T> above[N], below[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) {
    above[v] = load(out + v * n);
    below[v] = Vec<T>{};
  }
  for (int64_t s = 0; s < samples; ++s) {
    const T* row[4];
    Vec<T> factor[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      row[i] = value + corners.row[i][s] * stride;
      factor[i] = broadcast(factors.of[i][s]);
    }
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
      above[v] += factor[0] * load(row[0] + v * n);
      below[v] += factor[2] * load(row[2] + v * n);
      above[v] += factor[1] * load(row[1] + v * n);
      below[v] += factor[3] * load(row[3] + v * n);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) store(out + v * n, above[v] + below[v]);
}

template <class T>
static void deformable_forward(const Deformable<T>& a, T* scratch, int64_t begin, int64_t end) {
  const int64_t samples = a.maps * a.points, stride = a.channels;
  T* sums = scratch;  // (block, channels)
  auto* softmaxes = reinterpret_cast<DeformableSoftmax<T>*>(sums + a.block * stride);
  deformable_over_tasks(a, begin, end, [&](int64_t head, int64_t first, int64_t last) {
    deformable_softmaxes(a, head, first, last, softmaxes);
    __builtin_memset(sums, 0, (last - first) * stride * sizeof(T));
    const T* value = a.value + head * a.rows * stride;
    deformable_chunks(a, deformable_group(a), 0, a.maps, [&](const DeformableChunk<T>& chunk) {
      for (int64_t query = first; query < last; ++query) {
        DeformableCorners<T> corners;
        deformable_corners(a, chunk, query, head, &corners);
        const T* logits = a.weights + (query * a.heads + head) * samples + chunk.first;
        __builtin_prefetch(logits + 4 * a.heads * samples);
        Vec<T> weights = deformable_weights(a, logits, chunk.count, softmaxes[query - first]);
        weights = corners.missing ? broadcast(static_cast<T>(__builtin_nan(""))) : weights;
        const DeformableFactors<T> factors(corners, weights);
        deformable_vectors<T>(stride, [&](int64_t channel, auto vectors) {
          T* to = sums + (query - first) * stride + channel;
          deformable_mix<vectors.value>(value + channel, stride, corners, factors, chunk.count, to);
        });
      }
    });
    for (int64_t query = first; query < last; ++query) {
      const T* from = sums + (query - first) * stride;
      T* to = a.out + (query * a.heads + head) * a.head_dims;
      __builtin_memcpy(to, from, a.head_dims * sizeof(T));
    }
  });
}
