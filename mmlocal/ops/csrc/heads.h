// Memory for the work of one thread, and how heads lie in vectors of channels.

// Hands out parts of the scratch memory; from null it only counts.
template <class T>
struct Scratch {
  T* next;
  int64_t used = 0;

  template <class U = T>
  U* take(int64_t count) {
    U* part = reinterpret_cast<U*>(next ? next + used : nullptr);
    used += round_up(count * sizeof(U), 64) / sizeof(T);
    return part;
  }
};

// The heads of each vector of channels. Several heads share a vector where they are narrow or no
// multiple of it. The last vector may reach beyond the channels; its last head does so as well.
template <class T>
struct Heads {
  int64_t vectors;
  int64_t *first, *last;  // heads of the first and of the last lane
  IntVec<T>* lane;        // of each lane, counted from the first one

  Heads(int64_t heads, int64_t head_dims, Scratch<T>& scratch)
      : vectors((heads * head_dims + kLanes<T> - 1) / kLanes<T>),
        first(scratch.template take<int64_t>(vectors)),
        last(scratch.template take<int64_t>(vectors)),
        lane(scratch.template take<IntVec<T>>(vectors)) {
    if (!scratch.next) return;
    for (int64_t v = 0; v < vectors; ++v) {
      const auto head = [&](int64_t i) {
        return smaller((v * kLanes<T> + i) / head_dims, heads - 1);
      };
      first[v] = head(0);
      last[v] = head(kLanes<T> - 1);
      for (int64_t i = 0; i < kLanes<T>; ++i) lane[v][i] = head(i) - first[v];
    }
  }

  __attribute__((always_inline)) bool is_shared(int64_t v) const { return first[v] != last[v]; }

  // Whether a vector and the next one belong to one head.
  __attribute__((always_inline)) bool is_pair(int64_t v) const {
    return v + 1 < vectors && first[v] == last[v + 1];
  }
};
