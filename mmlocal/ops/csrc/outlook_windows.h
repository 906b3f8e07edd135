// Outlook: the parts that all of its kernels share. A kernel owns some rows of the map. It goes
// through the windows that reach these rows, and leaves the other rows alone. So each pixel gets
// its terms in the same order, whatever the number of threads.
//
// A window has one matrix per head, with a row for each target and a column for each source. "Rows"
// below are the rows of the matrices of all heads: row = head * taps + target. L rows form a block,
// and a vector holds one column of a block.

// The taps of a window in the map, [i0, i1) x [j0, j1), and those in the rows that the kernel owns,
// [own0, own1) x [j0, j1).
struct OutlookClip {
  int64_t i0, i1, j0, j1, own0, own1;

  bool operator==(const OutlookClip& other) const {
    return i0 == other.i0 && i1 == other.i1 && j0 == other.j0 && j1 == other.j1 &&
           own0 == other.own0 && own1 == other.own1;
  }
};

// Some taps of a window, and where they are.
template <class T>
struct OutlookTaps {
  int64_t count = 0;
  int64_t* pixel;   // (taps): the step in a map from the window's first tap
  int64_t* weight;  // (heads, taps): the step to the row or column in `OutlookScratch::weights`

  OutlookTaps(const Outlook<T>& a, Scratch<T>& scratch)
      : pixel(scratch.template take<int64_t>(a.kernel * a.kernel)),
        weight(scratch.template take<int64_t>(a.heads * a.kernel * a.kernel)) {}
};

// The memory of one thread, large enough for each of the kernels.
template <class T>
struct OutlookScratch {
  const int64_t taps, rows, blocks;
  Scratch<T> memory;
  const Heads<T> heads;
  Vec<T>* weights;  // (blocks, taps)
  Vec<T>* slopes;   // (blocks, taps): the gradient of the weights
  OutlookTaps<T> own, other;

  OutlookScratch(const Outlook<T>& a, T* memory)
      : taps(a.kernel * a.kernel),
        rows(a.heads * taps),
        blocks(ceil_div(rows, kLanes<T>)),
        memory{memory},
        heads(a.heads, a.head_dims, this->memory),
        own(a, this->memory),
        other(a, this->memory) {
    weights = this->memory.template take<Vec<T>>(blocks * taps);
    slopes = this->memory.template take<Vec<T>>(blocks * taps);
  }
};

template <class T>
static int64_t outlook_scratch(const Outlook<T>& a) {
  return OutlookScratch<T>(a, nullptr).memory.used;
}

// Lists the taps [i0, i1) x [j0, j1) of a window. They are targets, or else sources.
template <class T>
static void outlook_list(const Outlook<T>& a, const OutlookClip& clip, int64_t i0, int64_t i1,
                         const Map<const T>& map, bool targets, OutlookTaps<T>* list) {
  const int64_t taps = a.kernel * a.kernel;
  list->count = 0;
  for (int64_t i = i0; i < i1; ++i) {
    for (int64_t j = clip.j0; j < clip.j1; ++j) {
      const int64_t tap = i * a.kernel + j;
      list->pixel[list->count] = i * map.y + j * map.x;
      for (int64_t head = 0; head < a.heads; ++head) {
        const int64_t row = head * taps + tap;
        list->weight[head * taps + list->count] =
            targets ? row / kLanes<T> * taps * kLanes<T> + row % kLanes<T> : tap * kLanes<T>;
      }
      ++list->count;
    }
  }
}

// Calls f(b, i, j, clip) for each window that has taps in the rows [begin, end) of batch * height.
template <class T, class F>
MMLOCAL_INLINE void outlook_windows(const Outlook<T>& a, int64_t begin, int64_t end, const F& f) {
  for (int64_t b = begin / a.height; b * a.height < end; ++b) {
    const int64_t y0 = larger(begin - b * a.height, 0), y1 = smaller(end - b * a.height, a.height);
    const int64_t first = larger(0, ceil_div(y0 + a.padding - a.kernel + 1, a.stride));
    for (int64_t i = first; i < a.rows && i * a.stride - a.padding < y1; ++i) {
      OutlookClip clip{};
      const int64_t y = i * a.stride - a.padding;
      clip.i0 = larger(0, -y);
      clip.i1 = smaller(a.kernel, a.height - y);
      clip.own0 = larger(clip.i0, y0 - y);
      clip.own1 = smaller(clip.i1, y1 - y);
      for (int64_t j = 0; j < a.cols; ++j) {
        const int64_t x = j * a.stride - a.padding;
        clip.j0 = larger(0, -x);
        clip.j1 = smaller(a.kernel, a.width - x);
        f(b, i, j, clip);
      }
    }
  }
}

// Reads the matrices of a window. Each row passes a softmax if the op has one.
template <class T>
static void outlook_weights(const Outlook<T>& a, const T* logits,
                            const OutlookScratch<T>& scratch) {
  constexpr int n = kLanes<T>;
  const int64_t taps = scratch.taps;
  for (int64_t block = 0; block < scratch.blocks; ++block) {
    Vec<T>* w = scratch.weights + block * taps;
    const T* x = logits + block * n * taps;
    const int64_t rows = smaller(n, scratch.rows - block * n);
    for (int64_t s = 0; s < taps; ++s) {
      if (rows < n) w[s] = Vec<T>{};
      T* lanes = reinterpret_cast<T*>(w + s);
      for (int64_t i = 0; i < rows; ++i) lanes[i] = x[i * taps + s];
    }
    if (!a.softmax) continue;
    Vec<T> peak = w[0];
    for (int64_t s = 1; s < taps; ++s) peak = w[s] > peak ? w[s] : peak;
    Vec<T> total{};
    for (int64_t s = 0; s < taps; ++s) {
      w[s] = exp_scaled(w[s] - peak, Vec<T>{});
      total += w[s];
    }
    const Vec<T> scale = 1 / total;
    for (int64_t s = 0; s < taps; ++s) w[s] *= scale;
  }
}
