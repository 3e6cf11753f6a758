// A matrix times few vectors, as where a model writes: bound by how fast the matrix comes from memory, which is read
// once for all rows of x. A unit of work is some output channels.
//
//     y = x W^T + bias      x: [rows, width]      W: [channels, width]      y: [rows, channels]
//
// Each y is summed in one order, whatever the rows beside it, and the tile and thread that it falls to. W may be in halves
// (bfloat16), which are widened in registers: that is exact, so y is what it would be with W in float.

#include "native_matrix.h"

extern "C" {

// As `_WORK` in native_linear_layer.py. Pointers are to float or double; that to W, beside float, perhaps to halves.
struct Work {
  int64_t rows, width, channels, threads, double_precision, halves;
  const void *x, *weight, *bias;  // bias may be null
  void* y;
};
}

namespace {

constexpr long BYTES_OF_A_UNIT = 1 << 16;      // of W, or a little more
constexpr long BYTES_OF_ONE_THREAD = 1 << 18;  // another saves microseconds of as many, but may come late by far more
constexpr long BYTES_AHEAD = 1 << 16;          // what comes early must find room beside what is in use
constexpr long BYTES_OF_A_LINE = 64;

// Of a tile, whose sums stay in registers. Memory is asked for as many rows of W at a time as it has channels, and gives
// more for more of them. Of halves, which are twice the work a byte, 8 at a time came no slower than 16.
constexpr int REGISTERS = BYTES == 64 ? 32 : 16;
constexpr int MOST_ROWS = 3, CHANNELS = REGISTERS / 4;
template <typename Weight> constexpr int CHANNELS_OF_ONE = sizeof(Weight) == 2 ? REGISTERS / 4 : REGISTERS / 2;

struct Half {
  uint16_t bits;  // of a float, the upper ones; the others are zero
};

inline vec<float> widened(const float* p) { return load(p); }
inline vec<double> widened(const double* p) { return load(p); }
inline vec<float> widened(const Half* p) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return (vec<float>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16);
#elif defined(__AVX2__)
  const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return (vec<float>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
#elif defined(__AVX__)
  const __m128i none = _mm_setzero_si128(), halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  const __m256 low = _mm256_castps128_ps256((__m128)_mm_unpacklo_epi16(none, halves));
  return (vec<float>)_mm256_insertf128_ps(low, (__m128)_mm_unpackhi_epi16(none, halves), 1);
#elif defined(__SSE2__)
  const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return (vec<float>)_mm_unpacklo_epi16(_mm_setzero_si128(), halves);
#else
  uint32_t bits[Vector<float>::width];
  for (int i = 0; i < Vector<float>::width; ++i) bits[i] = static_cast<uint32_t>(p[i].bits) << 16;
  return load(reinterpret_cast<const float*>(bits));
#endif
}

// Rounded once, and told so: a compiler that is free to may round some tiles' products, and then their sums.
template <typename T> inline vec<T> plus_product(vec<T> sum, vec<T> a, vec<T> b) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (vec<T>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
  else return (vec<T>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__FMA__)
  if constexpr (sizeof(T) == 4) return (vec<T>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
  else return (vec<T>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#else
  return sum + a * b;
#endif
}

long channels_of_a_unit(const Work& work) {
  const long bytes = work.width * (work.halves ? 2 : work.double_precision ? 8 : 4);
  if (bytes * work.channels <= BYTES_OF_ONE_THREAD) return work.channels;
  constexpr long CHANNELS_OF_TILES = REGISTERS / 2;
  return (BYTES_OF_A_UNIT / (bytes * CHANNELS_OF_TILES) + 1) * CHANNELS_OF_TILES;
}

template <typename T, typename Weight> struct Linear {
  static constexpr int W = Vector<T>::width;
  static constexpr long LINE = BYTES_OF_A_LINE / sizeof(Weight);
  const Work& w;
  const long width, step;
  const T* const x;
  const Weight* const weight;
  const T* const bias;
  T* const y;
  explicit Linear(const Work& work)
      : w(work), width(work.width), step(channels_of_a_unit(work)), x(static_cast<const T*>(work.x)),
        weight(static_cast<const Weight*>(work.weight)), bias(static_cast<const T*>(work.bias)),
        y(static_cast<T*>(work.y)) {}

  void memory(int n) const {
    const long begin = n * step, end = std::min<long>(w.channels, begin + step);
    if (w.rows == 1) tiles<1, CHANNELS_OF_ONE<Weight>>(begin, end);
    else tiles<MOST_ROWS, CHANNELS>(begin, end);
  }

  template <int R, int C> void tiles(long begin, long end) const {
    for (; begin + C <= end; begin += C) {
      const bool ask = C * width * static_cast<long>(sizeof(Weight)) <= BYTES_AHEAD && begin + C < w.channels;
      for (long r = 0; r < w.rows; r += R) tile_of<R, C>(r, begin, ask && r == 0);
    }
    if constexpr (C > 1)
      if (begin < end) tiles<R, C / 2>(begin, end);
  }

  template <int R, int C> void tile_of(long r, long c, bool ask) const {  // or of as many rows as there are
    if constexpr (R > 1)
      if (w.rows - r < R) return tile_of<R - 1, C>(r, c, ask);
    tile<R, C>(r, c, ask);
  }

  // With `ask` the next channels come from memory meanwhile: of short rows it would bring few lines ahead by itself.
  template <int R, int C> void tile(long r, long c, bool ask) const {
    const T* const columns = x + r * width;
    const Weight* const rows = weight + c * width;
    vec<T> sums[R][C] = {};
    const auto add = [&](long j, auto from) {
      vec<T> column[R];
      for (int i = 0; i < R; ++i) column[i] = from(columns + i * width + j);
      for (int k = 0; k < C; ++k) {
        const vec<T> row = from(rows + k * width + j);
        for (int i = 0; i < R; ++i) sums[i][k] = plus_product<T>(sums[i][k], row, column[i]);
      }
    };
    const auto all = [](const auto* p) { return widened(p); };
    long j = 0;
    for (; j + LINE <= width; j += LINE) {
      if (ask)
        for (int k = 0; k < C; ++k) __builtin_prefetch(rows + (C + k) * width + j, 0, 2);
      for (long part = 0; part < LINE; part += W) add(j + part, all);
    }
    for (; j + W <= width; j += W) add(j, all);
    if (j < width)
      add(j, [rest = width - j](const auto* p) {
        std::remove_const_t<std::remove_pointer_t<decltype(p)>> some[W] = {};
        std::copy_n(p, rest, some);
        return widened(some);
      });
    for (int i = 0; i < R; ++i) totals<C>(sums[i], bias ? bias + c : nullptr, y + (r + i) * w.channels + c);
  }

  // All lanes of each sum, of many at a time where there are: by halves like `total`, and in its order.
  template <int C> static void totals(vec<T>* sums, const T* bias, T* to) {
    if constexpr (C > W) {
      totals<C / 2>(sums, bias, to);
      totals<C / 2>(sums + C / 2, bias ? bias + C / 2 : nullptr, to + C / 2);
    } else {
      T results[C];
      if constexpr (SHUFFLES) {
        const vec<T> all = halved<C, W / 2>(sums);
        for (int k = 0; k < C; ++k) results[k] = all[k * (W / C)];
      } else {
        for (int k = 0; k < C; ++k) results[k] = total<T>(sums[k]);
      }
      for (int k = 0; k < C; ++k) to[k] = bias ? results[k] + bias[k] : results[k];
    }
  }

  template <int C, int step> static vec<T> halved(vec<T>* sums) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    if constexpr (step == 0) {
      return sums[0];
    } else if constexpr (C == 1) {
      sums[0] += turned_by<T, step>(sums[0], lanes);
      return halved<1, step / 2>(sums);
    } else {
      for (int k = 0; k < C / 2; ++k) {
        const vec<T> a = sums[k], b = sums[k + C / 2];
        sums[k] = swapped<T, step, false>(a, b, lanes) + swapped<T, step, true>(a, b, lanes);
      }
      return halved<C / 2, step / 2>(sums);
    }
  }
};

template <typename T> using Plain = Linear<T, T>;

}  // namespace

extern "C" {
void linear(const Work* work) {
  const long step = channels_of_a_unit(*work);
  const int units = static_cast<int>((work->channels + step - 1) / step);
  if (work->halves) run_all<Linear<float, Half>>(*work, units, work->threads);
  else run_in_its_precision<Plain>(*work, units);
}
int size_of_work() { return sizeof(Work); }
}
