// ELSA: the forward pass.

template <class T>
static void elsa_forward(const Elsa<T>& a, T* memory, int64_t begin, int64_t end) {
  const int64_t taps = a.kernel * a.kernel, half = a.kernel / 2;
  const ElsaScratch<T> scratch(a, memory);
  const int64_t padded = scratch.padded;

  ElsaSum<T> s{};
  s.packed = scratch.packed;
  s.value_row = a.dilation * a.value.y;
  s.value_col = a.dilation * a.value.x;
  s.weight_tap_row = a.kernel;
  s.weight_col = a.softmax ? a.heads * padded : a.dilation * a.attn.x;
  s.weight_row = a.softmax ? kTileCols * s.weight_col : a.attn.y;
  s.weight_head = a.softmax ? padded : taps;
  s.out_row = a.out.y;
  s.out_col = a.dilation * a.out.x;
  elsa_sum_rows<T, false>(a, scratch.heads, s, begin, end, [&](int64_t b, int64_t y, int64_t x) {
    s.value = a.value.at(b, y, x) - half * (s.value_row + s.value_col);
    s.weight = a.attn.at(b, y, x);
    s.out = a.out.at(b, y, x);
    if (!a.softmax) return;
    for (int64_t row = 0; row < s.rows; ++row) {
      elsa_softmax_of_heads(a, s.weight + row * a.attn.y, a.dilation * a.attn.x,
                            scratch.weights + row * s.weight_row, s.weight_col, padded, s.cols);
    }
    s.weight = scratch.weights;
  });
}
