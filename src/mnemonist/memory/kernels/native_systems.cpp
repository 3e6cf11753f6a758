// The systems of a memory at its optimum, chunk by chunk: conjugate gradients as in least_squares.py, but all that a chunk
// needs stays in the cache of one core, scores of later keys are not made, and a chunk is done when its last token is.
//
// Shapes: X chunks of C tokens, K the width of keys.

#include "native_matrix.h"

extern "C" {

// As `_Work` in native_systems.py. Pointers are to float or double.
struct Work {
  int32_t X, C, K, most, threads, double_precision;
  double enough;                             // square of the residual at which a token stops, by that of its query
  const void *q, *keys;                      // [X, C, K]
  const void *start, *base, *fixed, *mix;    // [X, K, K], [X, C], [X, C], [X, C, C]
  void* x;                                   // [X, C, K]
};
}

namespace {

template <typename T> class Solver {
 public:
  explicit Solver(const Work& work)
      : w(work), C(w.C), K(w.K), strip(2L * Vector<T>::width * std::max(C, K)), inverse(square(K)), residual(tokens()),
        ahead(tokens()), direction(tokens()), across(tokens()), scores(square(C)), slope(C), enough(C), open(C) {}

  void memory(int n) {
    keys = at(w.keys, n * tokens()), start = at(w.start, n * square(K));
    base = at(w.base, long(n) * C), fixed = at(w.fixed, long(n) * C), mix = at(w.mix, n * square(C));
    const T* q = at(w.q, n * tokens());
    T* x = static_cast<T*>(w.x) + n * tokens();
    invert();
    precondition(q, x);
    apply(x);
    for (long j = 0; j < tokens(); ++j) residual[j] = q[j] - across[j];
    precondition(residual.data(), ahead.data());
    direction = ahead;
    for (int t = 0; t < C; ++t) {
      slope[t] = dot<T>(K, row(residual, t), row(ahead, t));
      enough[t] = T(w.enough) * dot<T>(K, q + t * K, q + t * K);
    }
    for (int step = 0; step < w.most && any_open(); ++step) {
      apply(direction.data());
      for (int t = 0; t < C; ++t) {
        if (!open[t]) continue;
        const T length = slope[t] / dot<T>(K, row(direction, t), row(across, t));
        add(x + t * K, length, row(direction, t));
        add(row(residual, t), -length, row(across, t));
      }
      precondition(residual.data(), ahead.data());
      for (int t = 0; t < C; ++t) {
        if (!open[t]) continue;
        const T before = slope[t], *next = row(ahead, t);
        slope[t] = dot<T>(K, row(residual, t), next);
        const T share = slope[t] / before;
        T* p = row(direction, t);
        for (int j = 0; j < K; ++j) p[j] = next[j] + share * p[j];
      }
    }
  }

 private:
  const Work& w;
  const int C, K;
  const T *keys = nullptr, *start = nullptr, *base = nullptr, *fixed = nullptr, *mix = nullptr;
  array<T> strip, inverse, residual, ahead, direction, across, scores, slope, enough;
  array<char> open;

  static long square(int size) { return static_cast<long>(size) * size; }
  long tokens() const { return static_cast<long>(C) * K; }
  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  T* row(array<T>& of, int t) const { return of.data() + static_cast<long>(t) * K; }
  void add(T* to, T share, const T* what) const {
    for (int j = 0; j < K; ++j) to[j] += share * what[j];
  }

  bool any_open() {  // a residual that is not a number stays as it is
    bool any = false;
    for (int t = 0; t < C; ++t) any |= open[t] = dot<T>(K, row(residual, t), row(residual, t)) > enough[t];
    return any;
  }

  // What the chunk starts from, inverted in place, pivot by pivot: it is positive definite.
  void invert() {
    std::copy_n(start, square(K), inverse.data());
    for (int k = 0; k < K; ++k) {
      T* pivot = row(inverse, k);
      const T scale = 1 / pivot[k];
      pivot[k] = 1;
      for (int j = 0; j < K; ++j) pivot[j] *= scale;
      for (int i = 0; i < K; ++i) {
        if (i == k) continue;
        T* other = row(inverse, i);
        const T factor = other[k];
        other[k] = 0;
        add(other, -factor, pivot);
      }
    }
  }

  void precondition(const T* r, T* z) { product<T>(C, K, K, r, K, 1, inverse.data(), K, 1, z, K, strip.data()); }

  // across = x_t H_t for every token.
  void apply(const T* x) {
    Scale<T> lower, left, more;
    lower.wanted.last = 0, left.row = base, more.add = true, more.filled.last = 0;
    product<T>(C, C, K, x, K, 1, keys, 1, K, scores.data(), C, strip.data(), lower);
    for (int t = 0; t < C; ++t)
      for (int s = 0; s < C; ++s) scores[t * C + s] = s > t ? 0 : scores[t * C + s] * mix[t * C + s];
    product<T>(C, K, K, x, K, 1, start, K, 1, across.data(), K, strip.data(), left);
    product<T>(C, K, C, scores.data(), C, 1, keys, K, 1, across.data(), K, strip.data(), more);
    for (int t = 0; t < C; ++t) add(row(across, t), fixed[t], x + static_cast<long>(t) * K);
  }
};

}  // namespace

extern "C" {
void solve(const Work* work) { run_in_its_precision<Solver>(*work, work->X); }
int size_of_work() { return sizeof(Work); }
}
