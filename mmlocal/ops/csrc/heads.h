// Memory for one thread, and the place of heads in vectors of channels.

// Hands out parts of the scratch memory. If the memory is null, it only counts.
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

// The heads of each vector of channels. Several heads share a vector if their channels do not fill
// whole vectors. The last vector may reach beyond the channels, and its last head then does so too.
template <class T>
struct Heads {
  int64_t vectors;
  int64_t *first, *last;  // heads of the first and of the last lane
  IntVec<T>* lane;        // the head of each lane, counted from `first`

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
