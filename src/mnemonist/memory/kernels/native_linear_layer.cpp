// A matrix times few vectors, as where a model writes: bound by how fast the matrix comes from memory, which is read
// once for all rows of x. A unit of work is some output channels.
//
//     y = x W^T + bias      x: [rows, width]      W: [channels, width]      y: [rows, channels]
//
// Each y is summed in one order, whatever the rows beside it, and the tile and thread that it falls to.

#include "native_matrix.h"

extern "C" {

// As `_WORK` in native_linear_layer.py. Pointers are to float or double.
struct Work {
  int64_t rows, width, channels, threads, double_precision;
  const void *x, *weight, *bias;  // bias may be null
  void* y;
};
}

namespace {

constexpr long BYTES_OF_A_UNIT = 1 << 16;      // of W, or a little more
constexpr long BYTES_OF_ONE_THREAD = 1 << 18;  // another saves microseconds of as many, but may come late by far more

// Of a tile, whose sums stay in registers. Memory is asked for as many rows of W at a time as it has channels, and gives
// more for more of them: 16 come at 1.4 times the rate of 4.
constexpr int REGISTERS = BYTES == 64 ? 32 : 16;
constexpr int MOST_ROWS = 3, CHANNELS = REGISTERS / 4, CHANNELS_OF_ONE = REGISTERS / 2;

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
  const long bytes = work.width * (work.double_precision ? 8 : 4);
  if (bytes * work.channels <= BYTES_OF_ONE_THREAD) return work.channels;
  return (BYTES_OF_A_UNIT / (bytes * CHANNELS_OF_ONE) + 1) * CHANNELS_OF_ONE;
}

template <typename T> struct Linear {
  static constexpr int W = Vector<T>::width;
  const Work& w;
  const long width, step;
  const T *const x, *const weight, *const bias;
  T* const y;
  explicit Linear(const Work& work)
      : w(work), width(work.width), step(channels_of_a_unit(work)), x(static_cast<const T*>(work.x)),
        weight(static_cast<const T*>(work.weight)), bias(static_cast<const T*>(work.bias)), y(static_cast<T*>(work.y)) {}

  void memory(int n) const {
    const long begin = n * step, end = std::min<long>(w.channels, begin + step);
    if (w.rows == 1) tiles<1, CHANNELS_OF_ONE>(begin, end);
    else tiles<MOST_ROWS, CHANNELS>(begin, end);
  }

  template <int R, int C> void tiles(long begin, long end) const {
    for (; begin + C <= end; begin += C)
      for (long r = 0; r < w.rows; r += R) tile_of<R, C>(r, begin);
    if constexpr (C > 1)
      if (begin < end) tiles<R, C / 2>(begin, end);
  }

  template <int R, int C> void tile_of(long r, long c) const {  // or of as many rows as there are
    if constexpr (R > 1)
      if (w.rows - r < R) return tile_of<R - 1, C>(r, c);
    tile<R, C>(r, c);
  }

  template <int R, int C> void tile(long r, long c) const {
    const T *columns = x + r * width, *rows = weight + c * width;
    vec<T> sums[R][C] = {};
    const auto add = [&](long j, auto from) {
      vec<T> column[R];
      for (int i = 0; i < R; ++i) column[i] = from(columns + i * width + j);
      for (int k = 0; k < C; ++k) {
        const vec<T> row = from(rows + k * width + j);
        for (int i = 0; i < R; ++i) sums[i][k] = plus_product<T>(sums[i][k], row, column[i]);
      }
    };
    const long whole = width / W * W;
    for (long j = 0; j < whole; j += W) add(j, [](const T* p) { return load(p); });
    if (whole < width)
      add(whole, [rest = width - whole](const T* p) {
        T some[W] = {};
        std::copy_n(p, rest, some);
        return load(some);
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

}  // namespace

extern "C" {
void linear(const Work* work) {
  const long step = channels_of_a_unit(*work);
  run_in_its_precision<Linear>(*work, static_cast<int>((work->channels + step - 1) / step));
}
int size_of_work() { return sizeof(Work); }
}
