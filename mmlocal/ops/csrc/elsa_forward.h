// ELSA: the forward pass.

template <class T>
static void elsa_forward(const Elsa<T>& a, T* memory, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  const ElsaScratch<T> scratch(a, memory);
  const int64_t padded = scratch.padded;

  ElsaSum<T> s{};
  s.value_steps = {a.dilation * a.value.y, a.dilation * a.value.x, a.value.x};
  s.weight_steps = {a.kernel, 1, a.softmax ? a.heads * padded : a.attn.x};
  s.head_step = a.softmax ? padded : taps;
  s.mul = a.mul;
  s.add = a.add;
  s.table_col = scratch.heads.vectors * kLanes<T>;
  s.table_row = a.kernel * s.table_col;
  s.out_pixel = a.out.x;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t b = row / a.height, y = row % a.height;
    elsa_clip(y, a.height, a.kernel, a.dilation, &s.window.i0, &s.window.i1);

    const auto begin_at = [&](int64_t x, int pixels) {
      s.value = a.value.at(b, y, x) - half * (s.value_steps.row + s.value_steps.col);
      s.weight = a.attn.at(b, y, x);
      s.out = a.out.at(b, y, x);
      if (!a.softmax) return;
      for (int p = 0; p < pixels; ++p) {
        for (int64_t head = 0; head < a.heads; ++head) {
          elsa_softmax(s.weight + p * a.attn.x + head * taps,
                       scratch.weights + (p * a.heads + head) * padded, taps);
        }
      }
      s.weight = scratch.weights;
    };
    elsa_sum_row(a, scratch.heads, s, begin_at, [&](int64_t x) {
      elsa_clip(x, a.width, a.kernel, a.dilation, &s.window.j0, &s.window.j1);
    });
  }
}
