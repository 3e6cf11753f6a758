// What the kernels are made of: vectors, matrix products small enough for the cache of one core, and threads.

#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <new>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>
#if defined(__SSE__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int BYTES = 64, ROWS = 8;
#elif defined(__AVX__)
constexpr int BYTES = 32, ROWS = 6;
#else
constexpr int BYTES = 16, ROWS = 8;
#endif

template <typename T> struct Vector {
  typedef T type __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
  using Integer = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  typedef Integer bits __attribute__((vector_size(BYTES), aligned(sizeof(T)), may_alias));
  static constexpr int width = BYTES / sizeof(T);
};

template <typename T> using vec = typename Vector<T>::type;

template <typename T> inline vec<T> load(const T* p) { return *reinterpret_cast<const vec<T>*>(p); }
template <typename T> inline void store(T* p, vec<T> v) { *reinterpret_cast<vec<T>*>(p) = v; }

// Straight to memory, past the caches, where the processor can and `p` allows; what is not read again soon.
template <typename T> inline void stream(T* p, vec<T> v) {
#if defined(__AVX512F__)
  if (reinterpret_cast<uintptr_t>(p) % BYTES == 0)
    return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), reinterpret_cast<__m512i&>(v));
#elif defined(__AVX__)
  if (reinterpret_cast<uintptr_t>(p) % BYTES == 0)
    return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), reinterpret_cast<__m256i&>(v));
#endif
  store(p, v);
}

// --- memory

// Room that a thread has once taken stays with it: memory given back to the system comes again page by page, which costs
// more than the arithmetic of a short call.
template <typename T> struct Kept {
  using value_type = T;
  Kept() = default;
  template <typename U> Kept(const Kept<U>&) {}
  T* allocate(size_t count) {
    auto& blocks = free_blocks()[bytes(count)];
    if (blocks.empty()) return static_cast<T*>(::operator new(bytes(count), std::align_val_t(64)));
    void* const block = blocks.back();
    blocks.pop_back();
    return static_cast<T*>(block);
  }
  void deallocate(T* block, size_t count) { free_blocks()[bytes(count)].push_back(block); }
  template <typename U> bool operator==(const Kept<U>&) const { return true; }
  template <typename U> bool operator!=(const Kept<U>&) const { return false; }

 private:
  struct Blocks : std::map<size_t, std::vector<void*>> {
    ~Blocks() {
      for (auto& [size, blocks] : *this)
        for (void* block : blocks) ::operator delete(block, std::align_val_t(64));
    }
  };
  static size_t bytes(size_t count) {  // powers of two, so that calls of many lengths share few sizes
    size_t size = 64;
    while (size < count * sizeof(T)) size *= 2;
    return size;
  }
  static Blocks& free_blocks() {
    thread_local Blocks blocks;
    return blocks;
  }
};

template <typename T> using array = std::vector<T, Kept<T>>;

// What will be read soon is asked of memory a few lines at a time, while products are made: a core that waits for what it
// needs gets a fraction of what it gets when it asks early.
class Ahead {
 public:
  void want(const void* from, long bytes, long rows = 1, long stride = 0) {  // rows of so many bytes, `stride` apart
    if (count < MOST) pieces[(first + count++) % MOST] = {static_cast<const char*>(from), 0, bytes, rows, stride};
  }
  void step() {
    for (int line = 0; line < LINES_OF_A_STEP && count; ++line) {
      Piece& piece = pieces[first];
      __builtin_prefetch(piece.from + piece.at, 0, 2);
      piece.at += LINE;
      if (piece.at < piece.bytes) continue;
      piece.at = 0, piece.from += piece.stride;
      if (!--piece.rows) first = (first + 1) % MOST, --count;
    }
  }

 private:
  static constexpr int MOST = 64, LINE = 64, LINES_OF_A_STEP = 8;
  struct Piece {
    const char* from;
    long at, bytes, rows, stride;
  };
  Piece pieces[MOST];
  int first = 0, count = 0;
};

// --- products

// A band of a matrix: entries whose column less its row is from `first` to `last`.
struct Diagonals {
  static constexpr long FAR = 1L << 40;
  long first = -FAR, last = FAR;
};

// What a product's rows, inner index and present contents are scaled by; all optional.
template <typename T> struct Scale {
  const T* row = nullptr;    // of each row of the result: stride below
  int row_stride = 1;
  const T* inner = nullptr;  // of each term of the sum
  int inner_stride = 1;
  T sign = 1;
  bool add = false;          // to what is there, or instead of it
  Diagonals wanted;          // of the result; what others hold afterwards means nothing
  Diagonals filled;          // of a; others are zero
  int others = 0;            // matrices laid out as the result, of each of which a share is added; it may be the result
  const T* other[3] = {};
  T share[3] = {};
  T* copy = nullptr;         // laid out as the result: gets it too, past the caches
  Ahead* ahead = nullptr;    // steps on with every few rows of the result

  void plus(const T* matrix, T weight) { other[others] = matrix, share[others++] = weight; }
};

// R rows by two vectors of columns, kept in registers.
template <typename T, int R>
inline void tile(int first, int depth, const T* a, long ars, long acs, const T* strip, T* c, long at, long ldc,
                 int columns, const Scale<T>& scale, int row) {
  constexpr int W = Vector<T>::width;
  vec<T> sum[R][2];
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = vec<T>{};
  if (scale.ahead) scale.ahead->step();
  for (int k = first; k < depth; ++k) {
    const vec<T> b0 = load(strip + k * 2 * W), b1 = load(strip + k * 2 * W + W);
    for (int r = 0; r < R; ++r) {
      const T value = a[r * ars + k * acs];
      sum[r][0] += b0 * value;
      sum[r][1] += b1 * value;
    }
  }
  if (scale.row)
    for (int r = 0; r < R; ++r) {
      const T weight = scale.row[(row + r) * scale.row_stride];
      sum[r][0] *= weight;
      sum[r][1] *= weight;
    }
  if (columns == 2 * W) {
    for (int i = 0; i < scale.others; ++i) {
      const T weight = scale.share[i];
      const T* from = scale.other[i] + at;
      for (int r = 0; r < R; ++r, from += ldc) sum[r][0] += weight * load(from), sum[r][1] += weight * load(from + W);
    }
    T* to = c + at;
    for (int r = 0; r < R; ++r, to += ldc) {
      if (scale.add) sum[r][0] += load(to), sum[r][1] += load(to + W);
      store(to, sum[r][0]);
      store(to + W, sum[r][1]);
    }
    if (scale.copy) {
      T* copy = scale.copy + at;
      for (int r = 0; r < R; ++r, copy += ldc) stream(copy, sum[r][0]), stream(copy + W, sum[r][1]);
    }
    return;
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < columns; ++j) {
      const long place = at + r * ldc + j;
      T value = j < W ? sum[r][0][j] : sum[r][1][j - W];
      for (int i = 0; i < scale.others; ++i) value += scale.share[i] * scale.other[i][place];
      c[place] = scale.add ? c[place] + value : value;
      if (scale.copy) scale.copy[place] = c[place];
    }
}

#if defined(__clang__) || __GNUC__ >= 12
constexpr bool SHUFFLES = true;  // whether the compiler knows the builtin below
#else
constexpr bool SHUFFLES = false;
#define __builtin_shufflevector(a, b, ...) (a)
#endif

// Lane l of the result, by whether bit `step` of l is set: from a and from b, which are swapped by blocks of `step`.
template <typename T, int step, bool second, int... l>
inline vec<T> swapped(vec<T> a, vec<T> b, std::integer_sequence<int, l...>) {
  constexpr int W = Vector<T>::width;
  return __builtin_shufflevector(a, b, (second ? (l & step ? l + W : l + step) : (l & step ? l - step + W : l))...);
}

template <typename T, int step = 1> inline void transpose(vec<T>* rows) {
  constexpr int W = Vector<T>::width;
  if constexpr (step < W) {
    constexpr auto lanes = std::make_integer_sequence<int, W>{};
    for (int i = 0; i < W; ++i) {
      if (i & step) continue;
      const vec<T> a = rows[i], b = rows[i + step];
      rows[i] = swapped<T, step, false>(a, b, lanes);
      rows[i + step] = swapped<T, step, true>(a, b, lanes);
    }
    transpose<T, 2 * step>(rows);
  }
}

template <typename T, int step, int... l> inline vec<T> turned_by(vec<T> v, std::integer_sequence<int, l...>) {
  return __builtin_shufflevector(v, v, ((l + step) % Vector<T>::width)...);
}

// All lanes of a vector as one number, by halves: one after the other they would wait for each other.
template <typename T, int step = Vector<T>::width / 2, typename Both> inline T folded(vec<T> v, Both both) {
  if constexpr (!SHUFFLES) {
    for (int u = 1; u < Vector<T>::width; ++u) v[0] = both(v[0], v[u]);
    return v[0];
  } else if constexpr (step == 0) {
    return v[0];
  } else {
    const vec<T> other = turned_by<T, step>(v, std::make_integer_sequence<int, Vector<T>::width>{});
    return folded<T, step / 2>(both(v, other), both);
  }
}
template <typename T> inline T total(vec<T> v) {
  return folded<T>(v, [](auto a, auto b) { return a + b; });
}

// A strip of two vectors of columns of b, whose columns are contiguous, scaled by `weight(k)`: square by square.
template <typename T, typename Weight> void pack_columns(int depth, const T* b, long bcs, T* strip, Weight weight) {
  constexpr int W = Vector<T>::width;
  int k = 0;
  for (; k + W <= depth; k += W)
    for (int half = 0; half < 2; ++half) {
      vec<T> square[W];
      for (int j = 0; j < W; ++j) square[j] = load(b + (half * W + j) * bcs + k);
      transpose<T>(square);
      for (int j = 0; j < W; ++j) store(strip + (k + j) * 2 * W + half * W, square[j] * weight(k + j));
    }
  for (; k < depth; ++k)
    for (int j = 0; j < 2 * W; ++j) strip[k * 2 * W + j] = b[j * bcs + k] * weight(k);
}

// c [rows, columns] (+)= scaled a [rows, depth] @ b [depth, columns]; a and b with strides of row and column.
template <typename T>
void product(int rows, int columns, int depth, const T* a, long ars, long acs, const T* b, long brs, long bcs, T* c,
             long ldc, T* strip, const Scale<T>& scale = {}) {
  constexpr int W = 2 * Vector<T>::width;
  for (int n = 0; n < columns; n += W) {
    const int width = std::min(W, columns - n);
    const auto weigh = [&](int k) { return scale.inner ? scale.sign * scale.inner[k * scale.inner_stride] : scale.sign; };
    const bool packed = SHUFFLES && brs == 1 && bcs != 1 && width == W;
    if (packed) pack_columns<T>(depth, b + n * bcs, bcs, strip, weigh);
    for (int k = 0; k < depth && !packed; ++k) {
      const T weight = weigh(k);
      const T* from = b + k * brs + n * bcs;
      T* to = strip + k * W;
      if (bcs == 1 && width == W) {
        store(to, load(from) * weight);
        store(to + W / 2, load(from + W / 2) * weight);
      } else {
        for (int j = 0; j < width; ++j) to[j] = from[j * bcs] * weight;
        for (int j = width; j < W; ++j) to[j] = 0;
      }
    }
    const auto within = [](long most, long number) { return static_cast<int>(std::min(std::max(number, 0L), most)); };
    int m = within(rows, n - scale.wanted.last) / ROWS * ROWS;
    const int rest = within(rows, n + width - scale.wanted.first);
    const auto past = [&](int row) { return within(depth, row + scale.filled.last); };
    const auto first = [&] { return within(depth, m + scale.filled.first); };
    const auto rows_of = [&](auto count) {
      constexpr int R = decltype(count)::value;
      for (; m < rest && m + R <= rows; m += R)
        tile<T, R>(first(), past(m + R), a + m * ars, ars, acs, strip, c, m * ldc + n, ldc, width, scale, m);
    };
    rows_of(std::integral_constant<int, ROWS>{});
    rows_of(std::integral_constant<int, 4>{});
    rows_of(std::integral_constant<int, 1>{});
  }
}

template <typename T> inline vec<T> exponential(vec<T> x) {
  using bits = typename Vector<T>::bits;
  constexpr bool single = sizeof(T) == 4;
  const T most = single ? T(87) : T(708);
  const vec<T> zero{};
  x = x > most ? zero + most : x;
  x = x < -most ? zero - most : x;
  const T magic = single ? T(12582912.0) : T(6755399441055744.0);
  const vec<T> shifted = x * T(1.4426950408889634) + magic;
  const vec<T> n = shifted - magic;
  const vec<T> r = x - n * T(single ? 0.693359375 : 0.693147180369123816490) -
                   n * T(single ? -2.12194440e-4 : 1.90821492927058770002e-10);
  constexpr int terms = single ? 7 : 13;
  constexpr auto over_factorial = [](int n) {
    double value = 1;
    for (int i = 2; i <= n; ++i) value /= i;
    return T(value);
  };
  vec<T> sum = zero + over_factorial(terms);
  for (int i = terms - 1; i >= 0; --i) sum = sum * r + over_factorial(i);
  const bits exponent = __builtin_convertvector(n, bits);
  const bits scale = (exponent + (single ? 127 : 1023)) << (single ? 23 : 52);
  return sum * reinterpret_cast<const vec<T>&>(scale);
}

template <typename T> T largest(long count, const T* x) {
  constexpr int W = Vector<T>::width;
  vec<T> most = vec<T>{} - std::numeric_limits<T>::infinity();
  long s = 0;
  for (; s + W <= count; s += W) {
    const vec<T> next = load(x + s);
    most = next > most ? next : most;
  }
  T largest = folded<T>(most, [](auto a, auto b) { return b > a ? b : a; });
  for (; s < count; ++s) largest = std::max(largest, x[s]);
  return largest;
}

// So many numbers x become exp(scale x - most); returns their sum.
template <typename T> T exponentials(long count, T* x, T scale, T most) {
  constexpr int W = Vector<T>::width;
  vec<T> sums{};
  long s = 0;
  for (; s + W <= count; s += W) {
    const vec<T> e = exponential<T>(load(x + s) * scale - most);
    store(x + s, e);
    sums += e;
  }
  T sum = total<T>(sums);
  if (s < count) {
    T rest[W] = {};
    for (long i = s; i < count; ++i) rest[i - s] = x[i] * scale - most;
    store(rest, exponential<T>(load(rest)));
    for (long i = s; i < count; ++i) sum += x[i] = rest[i - s];
  }
  return sum;
}

template <typename T> T dot(long count, const T* a, const T* b) {
  constexpr int W = Vector<T>::width;
  vec<T> sums[4] = {};
  long j = 0;
  for (; j + 4 * W <= count; j += 4 * W)
    for (int u = 0; u < 4; ++u) sums[u] += load(a + j + u * W) * load(b + j + u * W);
  for (; j + W <= count; j += W) sums[0] += load(a + j) * load(b + j);
  T sum = total<T>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  for (; j < count; ++j) sum += a[j] * b[j];
  return sum;
}

template <typename T> T sum(long count, const T* a) {
  constexpr int W = Vector<T>::width;
  vec<T> sums{};
  long j = 0;
  for (; j + W <= count; j += W) sums += load(a + j);
  T sum = total<T>(sums);
  for (; j < count; ++j) sum += a[j];
  return sum;
}

// to_s = scale x . row_s, of `count` rows that begin `stride` behind each other.
template <typename T>
void inner_products(long width, const T* x, const T* rows, long stride, long count, T scale, T* to) {
  constexpr int W = Vector<T>::width;
  long s = 0;
  if (SHUFFLES && width % W == 0)
    for (; s + W <= count; s += W) {  // as many rows as a vector has lanes: their sums come out as one vector
      vec<T> sums[W];
      for (int i = 0; i < W; ++i) {
        const T* row = rows + (s + i) * stride;
        vec<T> sum = load(x) * load(row);
        for (long j = W; j < width; j += W) sum += load(x + j) * load(row + j);
        sums[i] = sum;
      }
      transpose<T>(sums);
      for (int step = W / 2; step; step /= 2)
        for (int i = 0; i < step; ++i) sums[i] += sums[i + step];
      store(to + s, sums[0] * scale);
    }
  for (; s < count; ++s) to[s] = dot<T>(width, x, rows + s * stride) * scale;
}

// y += share sum_s weights_s row_s, of `count` rows that begin `stride` behind each other.
template <typename T, int N>
void weighted_columns(long count, const T* weights, const T* rows, long stride, T share, T* y) {
  constexpr int W = Vector<T>::width;
  vec<T> even[N] = {}, odd[N] = {};  // two sums, so that none waits for itself
  long s = 0;
  for (; s + 2 <= count; s += 2)
    for (int u = 0; u < N; ++u) {
      even[u] += load(rows + s * stride + u * W) * weights[s];
      odd[u] += load(rows + (s + 1) * stride + u * W) * weights[s + 1];
    }
  for (int u = 0; u < N; ++u) {
    if (s < count) even[u] += load(rows + s * stride + u * W) * weights[s];
    store(y + u * W, load(y + u * W) + (even[u] + odd[u]) * share);
  }
}
template <typename T>
void weighted_sum(long width, long count, const T* weights, const T* rows, long stride, T share, T* y) {
  constexpr int W = Vector<T>::width;
  long j = 0;
  for (; j + 4 * W <= width; j += 4 * W) weighted_columns<T, 4>(count, weights, rows + j, stride, share, y + j);
  for (; j + 2 * W <= width; j += 2 * W) weighted_columns<T, 2>(count, weights, rows + j, stride, share, y + j);
  for (; j + W <= width; j += W) weighted_columns<T, 1>(count, weights, rows + j, stride, share, y + j);
  for (; j < width; ++j) {
    T sum = 0;
    for (long s = 0; s < count; ++s) sum += weights[s] * rows[s * stride + j];
    y[j] += sum * share;
  }
}

// A vector of a row, or one of the numbers that are left over.
template <typename T> struct Several {
  long j;
  vec<T> of(const T* row) const { return load(row + j); }
  void put(T* row, vec<T> numbers) const { store(row + j, numbers); }
  void put_past_caches(T* row, vec<T> numbers) const { stream(row + j, numbers); }
};
template <typename T> struct One {
  long j;
  T of(const T* row) const { return row[j]; }
  void put(T* row, T number) const { row[j] = number; }
  void put_past_caches(T* row, T number) const { row[j] = number; }
};
template <typename T, typename Each> void along(long width, Each each) {
  long j = 0;
  for (; j + Vector<T>::width <= width; j += Vector<T>::width) each(Several<T>{j});
  for (; j < width; ++j) each(One<T>{j});
}

// OpenMP's way into a team of threads, or null. It is given from outside, for it must be that of torch: while torch's
// threads wait for more work they keep the cores busy, and threads of our own would have to share those with them.
using Team = void (*)(void (*)(void*), void*, unsigned, unsigned);
Team team = nullptr;

// Where other processes want the cores, a thread may come late by turns of the scheduler, for which a short call would
// wait many times as long as it takes. Then all that follow do without others for a while; no number depends on it.
// All in nanoseconds; until when is for all kernels of a process one number, which is given from outside too.
constexpr int64_t LATE = 2'000'000, SHORT = 50'000'000, WITHOUT = 500'000'000;
std::atomic<int64_t>* alone_until = nullptr;

inline int64_t now() {
  using namespace std::chrono;
  return duration_cast<nanoseconds>(steady_clock::now().time_since_epoch()).count();
}

// Memory after memory, on several threads.
template <typename Worker, typename Work> void run_all(const Work& work, int memories, int threads) {
  std::atomic<int> next{0};
  std::atomic<bool> late{false};
  const bool several = std::min(threads, memories) > 1;
  const int64_t began = several ? now() : 0;
  auto run = [&] {
    if (several && now() - began > LATE) late = true;
#if defined(__SSE__)
    const unsigned mode = _mm_getcsr();
    _mm_setcsr(mode | 0x8040);  // numbers too small to be normal are zero: they would cost many times the arithmetic
#endif
    if (next < memories) {
      Worker worker(work);
      for (int n; (n = next++) < memories;) worker.memory(n);
    }
#if defined(__SSE__)
    _mm_setcsr(mode);
    _mm_sfence();  // what was stored past the caches is there for all threads
#endif
  };
  if (!several || (alone_until && began < *alone_until)) return run();
  if (team) {
    team([](void* one) { (*static_cast<decltype(run)*>(one))(); }, &run, threads, 0);
    const int64_t ended = now();
    if (late && alone_until && ended - began < SHORT) *alone_until = ended + WITHOUT;
    return;
  }
  std::vector<std::thread> others;
  for (int i = 1; i < std::min(threads, memories); ++i) others.emplace_back(run);
  run();
  for (auto& other : others) other.join();
}

// The same with a worker for the numbers that the work consists of.
template <template <typename> class Worker, typename Work> void run_in_its_precision(const Work& work, int memories) {
  if (work.double_precision) run_all<Worker<double>>(work, memories, work.threads);
  else run_all<Worker<float>>(work, memories, work.threads);
}

}  // namespace

extern "C" void share_team(void* given, void* until) {
  team = reinterpret_cast<Team>(given);
  alone_until = static_cast<std::atomic<int64_t>*>(until);
}
