// Deformable attention: where the samples of a query lie, and what they weigh. Both passes share
// it. A sample is a point of a map. The samples of a query and head are numbered map by map.

// The most vectors of channels that a loop over samples works on together. Two sets of sums fit
// into the registers.
constexpr int kDeformableVectors = 5;

// Some samples of each query, no more than a vector of them. They belong to whole maps, or to one.
template <class T>
struct DeformableChunk {
  int64_t first, count;  // samples
  int64_t map, maps;     // the first map, and how many there are
  int64_t lane_map[kLanes<T>];
  Vec<T> width, height;
  IntVec<T> columns, lines;  // width and height as whole numbers
  IntVec<T> start;           // the row of value where the map begins
};

// How many maps fill a vector of samples.
template <class T>
static int64_t deformable_group(const Deformable<T>& a) {
  return larger(1, smaller(a.maps, kLanes<T> / a.points));
}

// Calls f(chunk) for all samples of the maps [begin, end). `group` maps share a chunk.
template <class T, class F>
MMLOCAL_INLINE void deformable_chunks(const Deformable<T>& a, int64_t group, int64_t begin,
                                      int64_t end, const F& f) {
  for (int64_t map = begin; map < end; map += group) {
    const int64_t maps = smaller(group, end - map);
    for (int64_t done = 0; done < maps * a.points; done += kLanes<T>) {
      DeformableChunk<T> chunk;
      chunk.first = map * a.points + done;
      chunk.count = smaller(kLanes<T>, maps * a.points - done);
      chunk.map = map;
      chunk.maps = maps;
      for (int64_t i = 0; i < kLanes<T>; ++i) {
        const int64_t own = smaller(map + (done + i) / a.points, map + maps - 1);
        const int64_t* size = a.sizes + own * 3;
        chunk.lane_map[i] = own;
        chunk.height[i] = size[0];
        chunk.width[i] = size[1];
        chunk.lines[i] = size[0];
        chunk.columns[i] = size[1];
        chunk.start[i] = size[2];
      }
      f(chunk);
    }
  }
}

// The corners of a chunk of samples: upper left, upper right, lower left, lower right.
template <class T>
struct DeformableCorners {
  alignas(64) typename Types<T>::Int row[4][kLanes<T>];  // rows of value
  Vec<T> right, low;       // the shares of the right and of the lower corners
  IntVec<T> missing;       // whether a coordinate is NaN
  IntVec<T> cut_x, cut_y;  // whether a coordinate is NaN or too far away to matter
};

// Reads `count` pairs (x, y).
template <class T>
MMLOCAL_INLINE void load_pairs(const T* pairs, int64_t count, Vec<T>* x, Vec<T>* y) {
  constexpr int n = kLanes<T>;
  if (count < n) {
    *x = *y = Vec<T>{};
    for (int64_t i = 0; i < count; ++i) {
      (*x)[i] = pairs[2 * i];
      (*y)[i] = pairs[2 * i + 1];
    }
    return;
  }
  const Vec<T> a = load(pairs), b = load(pairs + n);
#if defined(__clang__)
  for (int i = 0; i < n; ++i) {
    (*x)[i] = i < n / 2 ? a[2 * i] : b[2 * i - n];
    (*y)[i] = i < n / 2 ? a[2 * i + 1] : b[2 * i + 1 - n];
  }
#else
  const IntVec<T> even = 2 * numbers<T>();
  *x = __builtin_shuffle(a, b, even);
  *y = __builtin_shuffle(a, b, even + 1);
#endif
}

// Writes `count` pairs (x, y).
template <class T>
MMLOCAL_INLINE void store_pairs(T* pairs, Vec<T> x, Vec<T> y, int64_t count) {
  constexpr int n = kLanes<T>;
#if !defined(__clang__)
  if (count == n) {
    const IntVec<T> half = numbers<T>() / 2 + (numbers<T>() & 1) * n;
    store(pairs, __builtin_shuffle(x, y, half));
    store(pairs + n, __builtin_shuffle(x, y, half + n / 2));
    return;
  }
#endif
  for (int64_t i = 0; i < count; ++i) {
    pairs[2 * i] = x[i];
    pairs[2 * i + 1] = y[i];
  }
}

// A coordinate without its whole part, and the whole part. Two pixels outside the map, both corners
// are outside, so nothing changes beyond. There, the numbers are small enough for an integer.
template <class T>
MMLOCAL_INLINE Vec<T> split_coordinate(Vec<T> x, Vec<T> size, IntVec<T> missing, IntVec<T>* cut,
                                       IntVec<T>* whole) {
  const Vec<T> least = broadcast(T(-2)), most = size + 1;
  Vec<T> near = missing ? least : x;
  near = near < least ? least : near;
  near = near > most ? most : near;
  *cut = near != x;
  IntVec<T> cell = __builtin_convertvector(near, IntVec<T>);  // towards zero
  cell += __builtin_convertvector(cell, Vec<T>) > near;       // -1 where that was upwards
  *whole = cell;
  return near - __builtin_convertvector(cell, Vec<T>);
}

// Finds the corners of a chunk of samples of a query and head.
template <class T>
MMLOCAL_INLINE void deformable_corners(const Deformable<T>& a, const DeformableChunk<T>& chunk,
                                       int64_t query, int64_t head, DeformableCorners<T>* corners) {
  const int64_t samples = a.maps * a.points;
  const T* pairs = a.positions + 2 * ((query * a.heads + head) * samples + chunk.first);
  // The next queries follow at a distance that no CPU foresees.
  __builtin_prefetch(pairs + 8 * a.heads * samples);
  __builtin_prefetch(pairs + 8 * a.heads * samples + kLanes<T>);
  Vec<T> x, y;
  load_pairs(pairs, chunk.count, &x, &y);
  if (a.points_xy) {
    const T* points = a.points_xy + query * a.maps * 2;
    Vec<T> centre_x = broadcast(points[2 * chunk.map]);
    Vec<T> centre_y = broadcast(points[2 * chunk.map + 1]);
    if (chunk.maps > 1) {
      for (int64_t i = 0; i < kLanes<T>; ++i) {
        centre_x[i] = points[2 * chunk.lane_map[i]];
        centre_y[i] = points[2 * chunk.lane_map[i] + 1];
      }
    }
    x += centre_x * chunk.width - T(0.5);
    y += centre_y * chunk.height - T(0.5);
  } else {
    x = x * chunk.width - T(0.5);
    y = y * chunk.height - T(0.5);
  }
  const IntVec<T> missing = (x != x) | (y != y);
  IntVec<T> left, top;
  corners->missing = missing;
  corners->right = split_coordinate<T>(x, chunk.width, missing, &corners->cut_x, &left);
  corners->low = split_coordinate<T>(y, chunk.height, missing, &corners->cut_y, &top);

  const IntVec<T> last_x = chunk.columns - 1, last_y = chunk.lines - 1;
  const IntVec<T> empty = chunk.start + chunk.columns * chunk.lines;
  IntVec<T> col[2] = {left, left + 1}, line[2] = {top, top + 1}, no_col[2], no_line[2];
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    no_col[i] = (col[i] < 0) | (col[i] > last_x);
    no_line[i] = (line[i] < 0) | (line[i] > last_y);
    if (!a.border) continue;
    col[i] = col[i] < 0 ? IntVec<T>{} : col[i];
    col[i] = col[i] > last_x ? last_x : col[i];
    line[i] = line[i] < 0 ? IntVec<T>{} : line[i];
    line[i] = line[i] > last_y ? last_y : line[i];
    no_col[i] = no_line[i] = missing;
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const IntVec<T> row = chunk.start + line[i / 2] * chunk.columns + col[i % 2];
    const IntVec<T> found = (no_line[i / 2] | no_col[i % 2]) ? empty : row;
    __builtin_memcpy(corners->row[i], &found, sizeof(found));
  }
}

// The largest logit of a query and head, and one over the sum of the exponentials relative to it.
template <class T>
struct DeformableSoftmax {
  T peak, scale;
};

template <class T>
static DeformableSoftmax<T> deformable_softmax(const T* logits, int64_t samples) {
  const int64_t n = kLanes<T>;
  Vec<T> peaks = broadcast(-kInfinity<T>), total{};
  for (int64_t i = 0; i < samples; i += n) {
    const Vec<T> x = load(logits + i, samples - i, -kInfinity<T>);
    peaks = x > peaks ? x : peaks;
  }
  const T peak = largest<T>(peaks);
  for (int64_t i = 0; i < samples; i += n) {
    const Vec<T> x = load(logits + i, samples - i, -kInfinity<T>);
    total += exp_scaled(x - peak, Vec<T>{});
  }
  return {peak, 1 / sum<T>(total)};
}

// The weights of `count` samples. Without softmax, the logits are the weights.
template <class T>
MMLOCAL_INLINE Vec<T> deformable_weights(const Deformable<T>& a, const T* logits, int64_t count,
                                         const DeformableSoftmax<T>& softmax) {
  const Vec<T> x = load(logits, count, T(0));
  return a.softmax ? exp_scaled(x - softmax.peak, Vec<T>{}) * softmax.scale : x;
}

// The products of the weights and the shares of the corners.
template <class T>
struct DeformableFactors {
  alignas(64) T of[4][kLanes<T>];

  DeformableFactors(const DeformableCorners<T>& corners, Vec<T> weights) {
    const Vec<T> left = 1 - corners.right, top = weights * (1 - corners.low);
    const Vec<T> bottom = weights * corners.low;
    store(of[0], top * left);
    store(of[1], top * corners.right);
    store(of[2], bottom * left);
    store(of[3], bottom * corners.right);
  }
};

// A number that is known to the compiler.
template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls f(first channel, Constant<vectors>) for blocks of vectors of channels, which are about
// equal.
template <class T, class F>
MMLOCAL_INLINE void deformable_vectors(int64_t channels, const F& f) {
  const int64_t vectors = channels / kLanes<T>;
  const int64_t blocks = ceil_div(vectors, kDeformableVectors);
  for (int64_t i = 0; i < blocks; ++i) {
    const int64_t first = i * vectors / blocks, count = (i + 1) * vectors / blocks - first;
    const int64_t channel = first * kLanes<T>;
    if (count == 1) f(channel, Constant<1>{});
    if (count == 2) f(channel, Constant<2>{});
    if (count == 3) f(channel, Constant<3>{});
    if (count == 4) f(channel, Constant<4>{});
    if (count == 5) f(channel, Constant<5>{});
  }
}
