// QnA: the tables that a call begins with, and their gradients.

template <class T>
constexpr T kLowest = sizeof(T) == 4 ? T(-__FLT_MAX__) : T(-__DBL_MAX__);

template <class T>
static void qna_peak(const QnaCall<T>& a, int64_t part) {
  const int64_t sample = part / a.parts, row = part % a.parts;
  const int64_t begin = row * a.height / a.parts, end = (row + 1) * a.height / a.parts;
  const Sizes<T> s(a);
  const Vec<T> lowest = broadcast(kLowest<T>);
  for (int64_t i = 0; i < s.padded; i += kLanes<T>) {
    const int64_t t = s.whole(i);
    Vec<T> most = broadcast(-kInfinity<T>), bad{};
    for (int64_t y = begin; y < end; ++y) {
      for (int64_t x = 0; x < a.width; ++x) {
        const T* scores = a.scores.at(sample, y, x);
        const Vec<T> score = load(scores + t, s.tables - t, -kInfinity<T>);
        most = score > most ? score : most;
        // Adds 0, or NaN for NaN and infinity. A score of -inf takes a token out, so it adds 0.
        bad += (score < lowest ? lowest : score) * T(0);
      }
    }
    store(a.peak + part * s.padded + t, most + bad);
  }
}

// Makes shift and power of the peaks. Returns whether all scores are below infinity.
template <class T>
static bool qna_scales(const QnaCall<T>& a) {
  const Sizes<T> s(a);
  bool finite = true;
  for (int64_t b = 0; b < a.batch; ++b) {
    for (int64_t t = 0; t < s.padded; ++t) {
      T peak = -kInfinity<T>;
      for (int64_t i = 0; t < s.tables && i < a.parts; ++i) {
        const T part = a.peak[(b * a.parts + i) * s.padded + t];
        finite &= part < kInfinity<T>;
        peak = part > peak ? part : peak;
      }
      if (peak == -kInfinity<T>) peak = 0;
      // exp(score) / 2^K stays in range up to this size of the largest score. Beyond it, scores
      // are taken relative to the largest one. The difference is exact for scores that count.
      const bool large = peak > 256 || peak < -256;
      a.shift[b * s.padded + t] = large ? peak : T(0);
      a.power[b * s.padded + t] = large ? T(0) : T(__builtin_rint(peak * 1.4426950408889634));
    }
  }
  return finite;
}

// A task makes the tables of the fewest heads whose channels fill whole vectors.
template <class T>
struct Tables {
  const QnaCall<T>& a;
  const Sizes<T> s;
  const int64_t taps;
  Scratch<T> scratch;
  const Heads<T> heads;
  T* weighted;  // (taps, padded), and room for a vector: R times tap_weight
  T* row;       // (padded): the tables at one tap
  T* mixed;     // (mixed, n)
  double* r;    // (taps), and room for a vector: R of one table

  Tables(const QnaCall<T>& a, T* memory)
      : a(a),
        s(a),
        taps(a.kernel * a.kernel),
        scratch{memory},
        heads(a.heads, a.channels / a.heads, scratch) {
    weighted = scratch.take(taps * s.padded + kLanes<T>);
    row = scratch.take(s.padded);
    mixed = scratch.take(s.mixed * kLanes<T>);
    r = scratch.template take<double>(taps + kLanes<double>);
  }

  // Where mix, or its gradient, has a vector of channels at a tap.
  T* mix_at(T* mix, int64_t vector, int64_t tap) const {
    return mix + (vector * taps + tap) * a.queries * kLanes<T>;
  }

  int64_t heads_of_task() const {
    int64_t count = 1;
    while (count * (a.channels / a.heads) % kLanes<T>) ++count;
    return count;
  }

  // Makes rel of one table, and weighted. Returns false for NaN and infinity.
  bool load_table(int64_t table) const {
    constexpr int n = kLanes<double>;
    bool finite = true;
    for (int64_t t = 0; t < taps; ++t) r[t] = 1;
    if (a.rel_pos) {
      const T* from = a.rel_pos + table * taps;
      T most = -kInfinity<T>;
      for (int64_t t = 0; t < taps; ++t) {
        finite &= from[t] < kInfinity<T>;
        most = from[t] > most ? from[t] : most;
      }
      if (most == -kInfinity<T>) most = 0;
      for (int64_t t = 0; t < taps; ++t) r[t] = double(from[t]) - double(most);
      for (int64_t t = 0; t < taps; t += n) store(r + t, exp_scaled(load(r + t), Vec<double>{}));
    }
    for (int64_t t = 0; t < taps; ++t) {
      const T weight = tap_weight(a, table, t);
      finite &= weight < kInfinity<T> && weight > -kInfinity<T>;
      a.rel[t * s.padded + table] = T(r[t]);
      weighted[t * s.padded + table] = T(r[t]) * weight;
    }
    return finite;
  }

  // Makes rel and mix of a task. Returns false for NaN and infinity.
  bool load_task(int64_t task) const {
    const int64_t head_dims = a.channels / a.heads;
    const int64_t first = task * heads_of_task();
    const int64_t last = smaller(a.heads, first + heads_of_task());
    bool finite = true;
    for (int64_t l = 0; l < a.queries; ++l) {
      for (int64_t head = first; head < last; ++head) finite &= load_table(l * a.heads + head);
    }
    for (int64_t g = first * head_dims / kLanes<T>; g * kLanes<T> < last * head_dims; ++g) {
      const Expand<T> expand(a, heads, g);
      for (int64_t t = 0; t < taps; ++t) {
        T* out = mix_at(a.mix, g, t);
        for (int64_t l = 0; l < a.queries; ++l) {
          store(out + l * kLanes<T>, expand(weighted + t * s.padded, l));
        }
      }
    }
    for (int64_t t = 0; task == 0 && t < taps; ++t) {
      for (int64_t i = s.tables; i < s.padded; ++i) a.rel[t * s.padded + i] = 1;
    }
    return finite;
  }

  // A vector of a sum, over all parts.
  Vec<T> total(const T* sums) const {
    Vec<T> result{};
    for (int64_t part = 0; part < a.parts; ++part) result += load(sums + part * a.sums_of_part);
    return result;
  }

  void write_grads(int64_t tap) const {
    constexpr int64_t n = kLanes<T>;
    for (int64_t u = 0; u < s.mixed; ++u) {
      const T* sums = mix_at(a.sum_mix, u / a.queries, tap) + u % a.queries * n;
      store(mixed + u * n, total(sums));
    }
    sum_heads(a, s, mixed, row);
    for (int64_t t = 0; t < s.padded; t += n) {
      const int64_t at = tap * s.padded + t;
      const Vec<T> rel = load(a.rel + at), mix = rel * load(row + t);
      const Vec<T> exact_mix = total(a.sum_exact_mix + at);
      const Vec<T> rest = total(a.sum_exact_rel + at) - rel * total(a.sum_rel + at);
      for (int64_t i = 0; i < smaller(n, s.tables - t); ++i) {
        const int64_t to = (t + i) * taps + tap;
        a.grad_tap_weight[to] = mix[i] + exact_mix[i];
        a.grad_rel_pos[to] = mix[i] * tap_weight(a, t + i, tap) + rest[i];
      }
    }
  }
};

template <class T>
static int64_t qna_table_scratch(const QnaCall<T>& a) {
  return Tables<T>(a, nullptr).scratch.used;
}

template <class T>
static int64_t qna_table_tasks(const QnaCall<T>& a) {
  return ceil_div(a.heads, Tables<T>(a, nullptr).heads_of_task());
}

template <class T>
static bool qna_tables(const QnaCall<T>& a, T* scratch, int64_t begin, int64_t end) {
  const Tables<T> tables(a, scratch);
  bool finite = true;
  for (int64_t task = begin; task < end; ++task) finite &= tables.load_task(task);
  return finite;
}

template <class T>
static void qna_grad_tables(const QnaCall<T>& a, T* scratch, int64_t begin, int64_t end) {
  const Tables<T> tables(a, scratch);
  for (int64_t tap = begin; tap < end; ++tap) tables.write_grads(tap);
}
