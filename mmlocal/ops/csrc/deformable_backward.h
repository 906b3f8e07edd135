// Deformable attention: the gradients.

// The products of `grad` and the corners, for N vectors of channels. `dots` has a vector for each
// corner and sample. The sum of its lanes is the product. `more` adds to what is there.
template <int N, class T>
static void deformable_dots(const T* value, int64_t stride, const DeformableCorners<T>& corners,
                            const T* grad, int64_t samples, bool more, Vec<T> (*dots)[kLanes<T>]) {
  constexpr int n = kLanes<T>;
  Vec<T> g[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) g[v] = load(grad + v * n);
  for (int64_t s = 0; s < samples; ++s) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const T* row = value + corners.row[i][s] * stride;
      Vec<T> dot = g[0] * load(row);
#pragma GCC unroll 8
      for (int v = 1; v < N; ++v) dot += g[v] * load(row + v * n);
      dots[i][s] = more ? dots[i][s] + dot : dot;
    }
  }
}

// Adds `grad` times the factors to the corners, for N vectors of channels.
template <int N, class T>
static void deformable_spread(T* grad_value, int64_t stride, const DeformableCorners<T>& corners,
                              const DeformableFactors<T>& factors, const T* grad, int64_t samples) {
  constexpr int n = kLanes<T>;
  Vec<T> g[N];
#pragma GCC unroll 8
  for (int v = 0; v < N; ++v) g[v] = load(grad + v * n);
  for (int64_t s = 0; s < samples; ++s) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      T* row = grad_value + corners.row[i][s] * stride;
      const Vec<T> factor = broadcast(factors.of[i][s]);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) store(row + v * n, load(row + v * n) + factor * g[v]);
    }
  }
}

// Copies the gradients of the output of some queries and a head, with zeros after the channels.
template <class T>
static void deformable_load_grad(const Deformable<T>& a, int64_t head, int64_t begin, int64_t end,
                                 T* grads) {
  for (int64_t query = begin; query < end; ++query, grads += a.channels) {
    const T* from = a.grad + (query * a.heads + head) * a.head_dims;
    __builtin_memcpy(grads, from, a.head_dims * sizeof(T));
    for (int64_t i = a.head_dims; i < a.channels; ++i) grads[i] = 0;
  }
}

// The gradients of positions and weights, for the tasks of deformable_tasks.
template <class T>
static void deformable_grad_samples(const Deformable<T>& a, T* scratch, int64_t begin,
                                    int64_t end) {
  constexpr int n = kLanes<T>;
  const int64_t samples = a.maps * a.points, stride = a.channels;
  T* grads = scratch;  // (block, channels)
  auto* softmaxes = reinterpret_cast<DeformableSoftmax<T>*>(grads + a.block * stride);
  deformable_over_tasks(a, begin, end, [&](int64_t head, int64_t first, int64_t last) {
    deformable_softmaxes(a, head, first, last, softmaxes);
    deformable_load_grad(a, head, first, last, grads);
    const T* value = a.value + head * a.rows * stride;
    deformable_chunks(a, deformable_group(a), 0, a.maps, [&](const DeformableChunk<T>& chunk) {
      for (int64_t query = first; query < last; ++query) {
        DeformableCorners<T> corners;
        deformable_corners(a, chunk, query, head, &corners);
        Vec<T> dots[4][n];
        for (int64_t s = chunk.count; s < n; ++s) {
          for (auto& of_corner : dots) of_corner[s] = Vec<T>{};
        }
        deformable_vectors<T>(stride, [&](int64_t channel, auto vectors) {
          const T* grad = grads + (query - first) * stride + channel;
          deformable_dots<vectors.value>(value + channel, stride, corners, grad, chunk.count,
                                         channel > 0, dots);
        });
        const Vec<T> dot0 = sums_of<T>(dots[0]), dot1 = sums_of<T>(dots[1]);
        const Vec<T> dot2 = sums_of<T>(dots[2]), dot3 = sums_of<T>(dots[3]);
        const Vec<T> right = corners.right, left = 1 - right, low = corners.low, high = 1 - low;
        const int64_t at = (query * a.heads + head) * samples + chunk.first;
        if (a.grad_weights) {
          Vec<T> slope = high * (left * dot0 + right * dot1) + low * (left * dot2 + right * dot3);
          slope = corners.missing ? broadcast(static_cast<T>(__builtin_nan(""))) : slope;
          store(a.grad_weights + at, slope, chunk.count);
        }
        if (a.grad_positions) {
          const T* logits = a.weights + at;
          __builtin_prefetch(logits + 4 * a.heads * samples);
          const Vec<T> weights =
              deformable_weights(a, logits, chunk.count, softmaxes[query - first]);
          Vec<T> x = weights * (high * (dot1 - dot0) + low * (dot3 - dot2));
          Vec<T> y = weights * (left * (dot2 - dot0) + right * (dot3 - dot1));
          if (!a.points_xy) {
            x *= chunk.width;
            y *= chunk.height;
          }
          x = (corners.cut_x | corners.missing) ? Vec<T>{} : x;
          y = (corners.cut_y | corners.missing) ? Vec<T>{} : y;
          store_pairs(a.grad_positions + 2 * at, x, y, chunk.count);
        }
      }
    });
    // The gradient of the softmax: w * (dw - mean), mean = <w, dw>.
    for (int64_t query = first; a.softmax && a.grad_weights && query < last; ++query) {
      const int64_t at = (query * a.heads + head) * samples;
      T* slopes = a.grad_weights + at;
      Vec<T> means{};
      const auto weights = [&](int64_t i) {
        return deformable_weights(a, a.weights + at + i, samples - i, softmaxes[query - first]);
      };
      for (int64_t i = 0; i < samples; i += n) {
        const Vec<T> product = weights(i) * load(slopes + i, samples - i, T(0));
        const auto left = static_cast<typename Types<T>::Int>(samples - i);
        means += numbers<T>() < left ? product : Vec<T>{};
      }
      const T mean = sum<T>(means);
      for (int64_t i = 0; i < samples; i += n) {
        const Vec<T> slope = load(slopes + i, samples - i, T(0));
        store(slopes + i, weights(i) * (slope - mean), samples - i);
      }
    }
  });
}

// The fewest queries of a block, as in mmlocal/ops/deformable/cpp.py.
constexpr int64_t kFewestQueries = 16;

// The gradient of the values, for the maps [begin, end) of heads * maps. Only one task writes to a
// map, query by query, so the result does not depend on the number of threads.
template <class T>
static void deformable_grad_value(const Deformable<T>& a, T* scratch, int64_t begin, int64_t end) {
  const int64_t samples = a.maps * a.points, stride = a.channels;
  T* grads = scratch;  // (block, channels)
  auto* softmaxes = reinterpret_cast<DeformableSoftmax<T>*>(grads + a.block * stride);
  while (begin < end) {
    const int64_t head = begin / a.maps, map = begin % a.maps;
    const int64_t maps = smaller(a.maps - map, end - begin);
    T* grad_value = a.grad_value + head * a.rows * stride;
    // Blocks of queries order the sums over several chunks of points, and a.block depends on the
    // number of threads.
    const int64_t block = smaller(a.block, kFewestQueries);
    for (int64_t first = 0; first < a.queries; first += block) {
      const int64_t last = smaller(a.queries, first + block);
      deformable_softmaxes(a, head, first, last, softmaxes);
      deformable_load_grad(a, head, first, last, grads);
      const auto spread = [&](const DeformableChunk<T>& chunk) {
        for (int64_t query = first; query < last; ++query) {
          DeformableCorners<T> corners;
          deformable_corners(a, chunk, query, head, &corners);
          const T* logits = a.weights + (query * a.heads + head) * samples + chunk.first;
          __builtin_prefetch(logits + 4 * a.heads * samples);
          const DeformableFactors<T> factors(
              corners, deformable_weights(a, logits, chunk.count, softmaxes[query - first]));
          deformable_vectors<T>(stride, [&](int64_t channel, auto vectors) {
            const T* grad = grads + (query - first) * stride + channel;
            deformable_spread<vectors.value>(grad_value + channel, stride, corners, factors, grad,
                                             chunk.count);
          });
        }
      };
      deformable_chunks(a, deformable_group(a), map, map + maps, spread);
    }
    begin += maps;
  }
}

// The gradient of the reference points, from that of the positions, for queries [begin, end).
template <class T>
static void deformable_grad_points(const Deformable<T>& a, int64_t begin, int64_t end) {
  for (int64_t query = begin; query < end; ++query) {
    for (int64_t map = 0; map < a.maps; ++map) {
      T x = 0, y = 0;
      for (int64_t head = 0; head < a.heads; ++head) {
        const int64_t first = ((query * a.heads + head) * a.maps + map) * a.points;
        for (int64_t i = first; i < first + a.points; ++i) {
          x += a.grad_positions[2 * i];
          y += a.grad_positions[2 * i + 1];
        }
      }
      a.grad_points[(query * a.maps + map) * 2] = x * a.sizes[map * 3 + 1];
      a.grad_points[(query * a.maps + map) * 2 + 1] = y * a.sizes[map * 3];
    }
  }
}
