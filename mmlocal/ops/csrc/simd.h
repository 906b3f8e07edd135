// Vectors of MMLOCAL_VECTOR_BYTES bytes, in the compiler's own vector types. This file is included
// once per instruction set, in a namespace of its own.
//
// Nothing here may call a function template of the standard library. The linker would merge it with
// the copies of other files, and a plain CPU could end up with AVX-512 code.

template <class T>
struct Types;

template <>
struct Types<float> {
  using Int = int32_t;
  typedef float Vec __attribute__((vector_size(MMLOCAL_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(MMLOCAL_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t IntVec __attribute__((vector_size(MMLOCAL_VECTOR_BYTES)));
};

template <>
struct Types<double> {
  using Int = int64_t;
  typedef double Vec __attribute__((vector_size(MMLOCAL_VECTOR_BYTES)));
  typedef double Unaligned
      __attribute__((vector_size(MMLOCAL_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t IntVec __attribute__((vector_size(MMLOCAL_VECTOR_BYTES)));
};

template <class T>
using Vec = typename Types<T>::Vec;
template <class T>
using IntVec = typename Types<T>::IntVec;

template <class T>
constexpr int kLanes = MMLOCAL_VECTOR_BYTES / sizeof(T);

// How many pixels a loop over taps works on together. Their sums fit into the registers.
constexpr int kPixels = MMLOCAL_VECTOR_BYTES == 64 ? 8 : 4;

#define MMLOCAL_INLINE static inline __attribute__((always_inline))

template <class T>
constexpr T kInfinity = static_cast<T>(__builtin_inf());

MMLOCAL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
MMLOCAL_INLINE int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }
MMLOCAL_INLINE int64_t ceil_div(int64_t a, int64_t b) {
  return a >= 0 ? (a + b - 1) / b : -(-a / b);
}
MMLOCAL_INLINE int64_t round_up(int64_t a, int64_t b) { return (a + b - 1) / b * b; }

template <class T>
MMLOCAL_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Types<T>::Unaligned*>(p);
}

// p, without what the compiler knows about it. GCC would otherwise keep every sum of strides, and
// there are more of them than registers.
template <class T>
MMLOCAL_INLINE const T* hidden(const T* p) {
  asm("" : "+r"(p));
  return p;
}

template <class T>
MMLOCAL_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Types<T>::Unaligned*>(p) = v;
}

template <class T>
MMLOCAL_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};  // x + 0 would lose the sign of -0
}

// Loads the first `count` lanes from memory and fills the others.
template <class T>
MMLOCAL_INLINE Vec<T> load(const T* p, int64_t count, T fill) {
  if (count >= kLanes<T>) return load(p);
  Vec<T> v = broadcast(fill);
  for (int64_t i = 0; i < count; ++i) v[i] = p[i];
  return v;
}

template <class T>
MMLOCAL_INLINE void store(T* p, Vec<T> v, int64_t count) {
  if (count >= kLanes<T>) return store(p, v);
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

template <class T>
MMLOCAL_INLINE Vec<T> permute(Vec<T> v, IntVec<T> index) {
#if defined(__clang__)
  Vec<T> out;
  for (int i = 0; i < kLanes<T>; ++i) out[i] = v[index[i]];
  return out;
#else
  return __builtin_shuffle(v, index);
#endif
}

// 0, 1, 2, ... They are read from memory, because GCC would fill a vector lane by lane each time.
template <class T>
MMLOCAL_INLINE IntVec<T> numbers() {
  using Int = typename Types<T>::Int;
  alignas(64) static const Int values[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  IntVec<T> result;
  __builtin_memcpy(&result, values, sizeof(result));
  return result;
}

// v with its lanes exchanged over a distance. The distance is a power of two.
template <class T>
MMLOCAL_INLINE Vec<T> exchange(Vec<T> v, int distance) {
  return permute<T>(v, numbers<T>() ^ typename Types<T>::Int(distance));
}

// The sum of all lanes, in halves: in a row, each addition would wait for the one before.
template <class T>
MMLOCAL_INLINE T sum(Vec<T> v) {
#pragma GCC unroll 4
  for (int distance = kLanes<T> / 2; distance > 0; distance /= 2) v += exchange<T>(v, distance);
  return v[0];
}

template <class T>
MMLOCAL_INLINE T largest(Vec<T> v) {
#pragma GCC unroll 4
  for (int distance = kLanes<T> / 2; distance > 0; distance /= 2) {
    const Vec<T> other = exchange<T>(v, distance);
    v = other > v ? other : v;
  }
  return v[0];
}

// The lanes 0, 1, 2, ... of a vector as constants, from which the compiler chooses instructions.
template <int... I>
struct Lanes {};
template <int N, int... I>
struct FirstLanes : FirstLanes<N - 1, N - 1, I...> {};
template <int... I>
struct FirstLanes<0, I...> {
  using Type = Lanes<I...>;
};

// The lanes of a and b at even places if ODD is 0, and those at odd places if it is 1. Pairs of
// lanes meet inside a block of 16 bytes, or pairs of such blocks if BLOCKS: other shuffles are
// slow.
template <class T, bool BLOCKS, int ODD, int... I>
MMLOCAL_INLINE Vec<T> every_second(Vec<T> a, Vec<T> b, Lanes<I...>) {
  constexpr int n = sizeof...(I), block = 16 / sizeof(T);
  constexpr int width = BLOCKS ? block : 1, count = BLOCKS ? n / block : block;
  struct Place {
    static constexpr int of(int i) {
      const int start = i / (width * count) * (width * count), at = i / width % count;
      const int from = at < count / 2 ? 2 * at : 2 * at - count + n / width;
      return start + (from + ODD) * width + i % width;
    }
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, Place::of(I)...);
#else
  return __builtin_shuffle(a, b, IntVec<T>{Place::of(I)...});
#endif
}

// Lane i of the result is the sum of the lanes of rows[i], or the largest one. Destroys rows.
template <class T, bool LARGEST>
MMLOCAL_INLINE Vec<T> joined(Vec<T>* rows) {
  constexpr int n = kLanes<T>, block = 16 / sizeof(T);
  const typename FirstLanes<n>::Type lanes;
#pragma GCC unroll 4
  for (int size = 1; size < n; size *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < n / (2 * size); ++i) {
      const Vec<T> a = rows[2 * i], b = rows[2 * i + 1];
      const Vec<T> even = size < block ? every_second<T, false, 0>(a, b, lanes)
                                       : every_second<T, true, 0>(a, b, lanes);
      const Vec<T> odd = size < block ? every_second<T, false, 1>(a, b, lanes)
                                      : every_second<T, true, 1>(a, b, lanes);
      rows[i] = LARGEST ? (even > odd ? even : odd) : even + odd;
    }
  }
  return rows[0];
}

template <class T>
MMLOCAL_INLINE Vec<T> sums_of(Vec<T>* rows) {
  return joined<T, false>(rows);
}

template <class T>
MMLOCAL_INLINE Vec<T> largest_of(Vec<T>* rows) {
  return joined<T, true>(rows);
}

// Transposes a square of numbers: rows[i][j] becomes rows[j][i].
template <class T>
MMLOCAL_INLINE void transpose(Vec<T>* rows) {
  constexpr int n = kLanes<T>;
#pragma GCC unroll 4
  for (int bit = 1; bit < n; bit *= 2) {  // each step exchanges one bit of i and j
#if !defined(__clang__)
    const IntVec<T> lane = numbers<T>(), upper = (lane & bit) != 0;
    const IntVec<T> low = upper ? lane + (n - bit) : lane, high = upper ? lane + n : lane + bit;
#endif
#pragma GCC unroll 16
    for (int i = 0; i < n; ++i) {
      if (i & bit) continue;
      const Vec<T> a = rows[i], b = rows[i + bit];
#if defined(__clang__)
      for (int j = 0; j < n; ++j) {
        rows[i][j] = j & bit ? b[j - bit] : a[j];
        rows[i + bit][j] = j & bit ? b[j] : a[j + bit];
      }
#else
      rows[i] = __builtin_shuffle(a, b, low);
      rows[i + bit] = __builtin_shuffle(a, b, high);
#endif
    }
  }
}

// exp(x) / 2^power, for x up to 500. The argument is not rounded on the way, so results of any size
// have the same relative error (1e-7 in float). Results below the smallest normal number are 0, as
// is the result for -inf. NaN stays NaN.
MMLOCAL_INLINE Vec<float> exp_scaled(Vec<float> x, Vec<float> power) {
  const Vec<float> low = broadcast(-500.0f), high = broadcast(500.0f);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec<float> magic = broadcast(12582912.0f);  // 1.5 * 2^23: to the nearest whole number
  const Vec<float> n = (x * 1.44269504f + magic) - magic;
  // ln 2 in two parts, the first one short (Cephes)
  const Vec<float> r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const Vec<float> e = n - power;
  const Vec<float> least = broadcast(-126.0f), most = broadcast(127.0f);
  Vec<float> clamped = e < least ? least : e;
  clamped = clamped > most ? most : clamped;
  const IntVec<float> bits = (__builtin_convertvector(clamped, IntVec<float>) + 127) << 23;
  const Vec<float> result = p * (Vec<float>)bits;
  return e < least ? Vec<float>{} : result;
}

MMLOCAL_INLINE Vec<double> exp_scaled(Vec<double> x, Vec<double> power) {
  const Vec<double> low = broadcast(-2000.0), high = broadcast(500.0);
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec<double> magic = broadcast(6755399441055744.0);  // 1.5 * 2^52
  const Vec<double> n = (x * 1.4426950408889634 + magic) - magic;
  const Vec<double> r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  Vec<double> p = r * (1.0 / 6227020800) + 1.0 / 479001600;  // Taylor, to r^13
  p = p * r + 1.0 / 39916800;
  p = p * r + 1.0 / 3628800;
  p = p * r + 1.0 / 362880;
  p = p * r + 1.0 / 40320;
  p = p * r + 1.0 / 5040;
  p = p * r + 1.0 / 720;
  p = p * r + 1.0 / 120;
  p = p * r + 1.0 / 24;
  p = p * r + 1.0 / 6;
  p = p * r + 0.5;
  p = p * (r * r) + r + 1.0;
  const Vec<double> e = n - power;
  const Vec<double> least = broadcast(-1022.0), most = broadcast(1023.0);
  Vec<double> clamped = e < least ? least : e;
  clamped = clamped > most ? most : clamped;
  const IntVec<double> bits = (__builtin_convertvector(clamped, IntVec<double>) + 1023) << 52;
  const Vec<double> result = p * (Vec<double>)bits;
  return e < least ? Vec<double>{} : result;
}

// exp(x) for x up to 0, as exp_scaled has it.
MMLOCAL_INLINE Vec<float> exp_negative(Vec<float> x) {
  const Vec<float> least = broadcast(-87.3365f);  // the logarithm of the smallest normal number
  const Vec<float> clamped = least > x ? least : x;
  const Vec<float> magic = broadcast(12582912.0f);
  const Vec<float> shifted = clamped * 1.44269504f + magic;  // a whole number in its last bits
  const Vec<float> n = shifted - magic;
  const Vec<float> r = (clamped - n * 0.693359375f) - n * -2.12194440e-4f;
  Vec<float> p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  const IntVec<float> power = ((IntVec<float>)shifted << 23) + (127 << 23);
  return x < least ? Vec<float>{} : p * (Vec<float>)power;
}

MMLOCAL_INLINE Vec<double> exp_negative(Vec<double> x) { return exp_scaled(x, Vec<double>{}); }
