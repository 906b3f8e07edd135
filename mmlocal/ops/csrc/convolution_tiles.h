// A grouped convolution: what its kernels share. A vector has whole groups of channels. Lane i of
// an output takes the channels of its own group, so a factor is the vector of a pixel with one
// channel of each group in all lanes of that group.
//
// A dilated convolution is many convolutions without dilation, of maps that skip pixels. A task is
// some rows of one of them, for one vector of channels. It copies its pixels to a tile, where they
// lie side by side, with zeros around the map.

// How many channels a group has. A vector is never smaller than a group.
constexpr int kGroup = 4;

template <class T>
struct Grouped {
  static constexpr int n = kLanes<T> > kGroup ? kLanes<T> : kGroup;
  typedef T Vec __attribute__((vector_size(n * sizeof(T))));
  typedef T Unaligned __attribute__((vector_size(n * sizeof(T)), aligned(sizeof(T)), may_alias));
  typedef typename Types<T>::Int Index __attribute__((vector_size(n * sizeof(T))));

  static __attribute__((always_inline)) const Unaligned& at(const T* p) {
    return *reinterpret_cast<const Unaligned*>(p);
  }
  static __attribute__((always_inline)) Unaligned& at(T* p) {
    return *reinterpret_cast<Unaligned*>(p);
  }
};

// Sets x to channel C of each group of p, in all lanes of the group.
template <class T, int C, int... I>
MMLOCAL_INLINE void spread(const T* p, typename Grouped<T>::Vec& x, Lanes<I...>) {
  x = Grouped<T>::at(p);
#if defined(__clang__)
  x = __builtin_shufflevector(x, x, (I / kGroup * kGroup + C)...);
#else
  // The numbers must be constants, so that this is one instruction.
  x = __builtin_shuffle(x, typename Grouped<T>::Index{(I / kGroup * kGroup + C)...});
#endif
}

template <class T, int C>
MMLOCAL_INLINE void spread(const T* p, typename Grouped<T>::Vec& x) {
  spread<T, C>(p, x, typename FirstLanes<Grouped<T>::n>::Type());
}

constexpr bool kManyRegisters = MMLOCAL_VECTOR_BYTES == 64;
// How many pixels of a row are computed together. Sides of maps are often multiples of 7, as those
// of an image of 224x224 are.
constexpr int kBlock = 7;
// How many rows a task has at most.
constexpr int64_t kRows = 16;

// How the tasks share a map of outputs.
struct ConvolutionTasks {
  int64_t step, rows, cols, bands, band_rows, count;

  template <class T>
  explicit ConvolutionTasks(const GroupedConvolution<T>& a)
      : step(a.dilation),
        rows(smaller(step, a.out_height)),
        cols(smaller(step, a.out_width)),
        bands(ceil_div(ceil_div(a.out_height, step), kRows)),
        band_rows(ceil_div(ceil_div(a.out_height, step), bands)),
        count(a.batch * rows * cols * bands) {}
};

// The outputs (top + i * step, left + j * step) of one sample, for i < rows and j < cols.
struct ConvolutionTask {
  int64_t sample, top, left, rows, cols;

  template <class T>
  ConvolutionTask(const GroupedConvolution<T>& a, const ConvolutionTasks& all, int64_t index) {
    const int64_t band = index % all.bands, first = index / all.bands;
    const int64_t skipped = band * all.band_rows;
    left = first % all.cols;
    top = first / all.cols % all.rows;
    sample = first / all.cols / all.rows;
    rows = smaller(all.band_rows, ceil_div(a.out_height - top, all.step) - skipped);
    cols = ceil_div(a.out_width - left, all.step);
    top += skipped * all.step;
  }
};

// The largest row of a tile, in pixels. A block of outputs may reach beyond the last one.
template <class T>
MMLOCAL_INLINE int64_t tile_width(const GroupedConvolution<T>& a) {
  return ceil_div(a.out_width, a.dilation) + 2 * a.kernel + kBlock;
}

// The indices i of 0, 1, ..., count - 1 that have first + i * step inside 0, 1, ..., size - 1.
struct Inside {
  int64_t begin, end;
  Inside(int64_t first, int64_t step, int64_t count, int64_t size)
      : begin(smaller(count, larger(0, ceil_div(-first, step)))),
        end(larger(begin, smaller(count, ceil_div(size - first, step)))) {}
};

// Copies the pixels (top + i * step, left + j * step) of a map. Columns outside are 0. Rows outside
// are left as they are.
template <class T>
MMLOCAL_INLINE void fill_tile(T* tile, const Map<const T>& map, int64_t height, int64_t width,
                              int64_t sample, int64_t channel, int64_t top, int64_t left,
                              int64_t step, int64_t rows, int64_t cols) {
  using G = Grouped<T>;
  const Inside inside(left, step, cols, width);
  for (int64_t i = 0; i < rows; ++i, tile += cols * G::n) {
    const int64_t y = top + i * step;
    if (y < 0 || y >= height) continue;
    for (int64_t j = 0; j < inside.begin; ++j) G::at(tile + j * G::n) = typename G::Vec{};
    const T* from = map.at(sample, y, left + inside.begin * step) + channel;
    for (int64_t j = inside.begin; j < inside.end; ++j, from += step * map.x) {
      G::at(tile + j * G::n) = G::at(from);
    }
    for (int64_t j = inside.end; j < cols; ++j) G::at(tile + j * G::n) = typename G::Vec{};
  }
}

// Whether `count` vectors have finite numbers only.
template <class T>
MMLOCAL_INLINE bool are_finite(const T* p, int64_t count) {
  using G = Grouped<T>;
  typename G::Vec zero = {};
  for (int64_t i = 0; i < count; ++i) zero += G::at(p + i * G::n) * 0;
  T total = 0;
  for (int i = 0; i < G::n; ++i) total += zero[i];
  return total == 0;
}
