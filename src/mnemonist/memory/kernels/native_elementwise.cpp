// What stands between the matrix products of a model: norms, gated activations, rotations. Each is little arithmetic on
// much data, so each is one pass over it, and one back. A unit of work is a block of rows, whatever the number of
// threads, so that sums over rows do not depend on it.
//
//     rms             y = x / sqrt(mean(x^2) + eps) * weight
//     gated           y = silu(a) b
//     turn            q, k turned by the angles of their positions: (a, b) -> (a cos - b sin, b cos + a sin); v as it is

#include "native_matrix.h"

extern "C" {

// As `_Work` in native_elementwise.py. Pointers are to float or double.
struct Work {
  int64_t rows;                            // of rms and gated; of turn: tokens, B T
  int64_t a_stride, b_stride;              // between rows of a and b, and of their derivatives
  int64_t angles;                          // tokens after which the angles begin anew
  int64_t to_strides[9];                   // of to_q, to_k, to_v: over rows, tokens, heads
  int32_t width, heads, tokens, threads, double_precision;
  double eps;
  const void *a, *b, *weight, *cosine, *sine;
  void *y, *scale;                         // scale: [rows], what rms has divided by, inverted
  void *q, *k, *v;                         // [tokens, heads, width]
  // The way back.
  const void *to_y, *to_q, *to_k, *to_v;
  void *to_a, *to_b, *to_weight;           // to_weight: [blocks, width], to be summed
};
}

namespace {

constexpr long BLOCK = 64;  // rows

template <typename T> struct Pass {
  static constexpr int W = Vector<T>::width;
  const Work& w;
  const long D;
  explicit Pass(const Work& work) : w(work), D(work.width) {}

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  long begin(int n) const { return n * BLOCK; }
  long end(int n) const { return std::min<long>(w.rows, (n + 1) * BLOCK); }

  // Calls `each` with places of vectors, and `rest` with those that are left over.
  template <typename Each, typename Rest> void along(Each each, Rest rest) const {
    long j = 0;
    for (; j + W <= D; j += W) each(j);
    for (; j < D; ++j) rest(j);
  }
};

template <typename T> struct Rms : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const T* weight = this->at(w.weight, 0);
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *x = this->at(w.a, i * D), scale = T(1) / std::sqrt(dot<T>(D, x, x) / T(D) + T(w.eps));
      T* y = this->at(w.y, i * D);
      *this->at(w.scale, i) = scale;
      this->along([&](long j) { store(y + j, load(x + j) * scale * load(weight + j)); },
                  [&](long j) { y[j] = x[j] * scale * weight[j]; });
    }
  }
};

template <typename T> struct RmsBack : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const T* weight = this->at(w.weight, 0);
    T* to_weight = this->at(w.to_weight, n * D);
    std::fill_n(to_weight, D, T(0));
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *x = this->at(w.a, i * D), *g = this->at(w.to_y, i * D), scale = *this->at(w.scale, i);
      T* to = this->at(w.to_a, i * D);
      // to_x = scale (g weight - x scale^2 mean(g weight x))
      this->along([&](long j) { store(to + j, load(g + j) * load(weight + j)); }, [&](long j) { to[j] = g[j] * weight[j]; });
      const T share = dot<T>(D, to, x) / T(D) * scale * scale * scale;
      this->along(
          [&](long j) {
            const vec<T> xj = load(x + j);
            store(to_weight + j, load(to_weight + j) + load(g + j) * xj * scale);
            store(to + j, load(to + j) * scale - xj * share);
          },
          [&](long j) {
            to_weight[j] += g[j] * x[j] * scale;
            to[j] = to[j] * scale - x[j] * share;
          });
    }
  }
};

template <typename T> inline vec<T> opened(vec<T> a) { return T(1) / (T(1) + exponential<T>(-a)); }

template <typename T> struct Gated : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D, Pass<T>::W;
  void memory(int n) {
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *a = this->at(w.a, i * w.a_stride), *b = this->at(w.b, i * w.b_stride);
      T* y = this->at(w.y, i * D);
      long j = 0;
      auto product = [&](vec<T> aj, vec<T> bj) { return aj * opened<T>(aj) * bj; };
      for (; j + W <= D; j += W) store(y + j, product(load(a + j), load(b + j)));
      if (j < D) {  // the rest of a row, as a vector of its own
        T pa[W] = {}, pb[W] = {}, py[W];
        std::copy(a + j, a + D, pa);
        std::copy(b + j, b + D, pb);
        store(py, product(load(pa), load(pb)));
        std::copy_n(py, D - j, y + j);
      }
    }
  }
};

template <typename T> struct GatedBack : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D, Pass<T>::W;
  void memory(int n) {
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *a = this->at(w.a, i * w.a_stride), *b = this->at(w.b, i * w.b_stride), *g = this->at(w.to_y, i * D);
      T *to_a = this->at(w.to_a, i * w.a_stride), *to_b = this->at(w.to_b, i * w.b_stride);
      auto derive = [](vec<T> aj, vec<T> bj, vec<T> gj, T* ta, T* tb) {
        const vec<T> gate = opened<T>(aj), s = aj * gate;
        store(ta, gj * bj * (gate + s * (T(1) - gate)));
        store(tb, gj * s);
      };
      long j = 0;
      for (; j + W <= D; j += W) derive(load(a + j), load(b + j), load(g + j), to_a + j, to_b + j);
      if (j < D) {
        T pa[W] = {}, pb[W] = {}, pg[W] = {}, ta[W], tb[W];
        std::copy(a + j, a + D, pa);
        std::copy(b + j, b + D, pb);
        std::copy(g + j, g + D, pg);
        derive(load(pa), load(pb), load(pg), ta, tb);
        std::copy_n(ta, D - j, to_a + j);
        std::copy_n(tb, D - j, to_b + j);
      }
    }
  }
};

// y = x cos + other half of x * sin, for the two halves of a head.
template <typename T> inline void turned(long half, const T* x, const T* cosine, const T* sine, T* y) {
  constexpr int W = Vector<T>::width;
  const T *a = x, *b = x + half;
  long j = 0;
  for (; j + W <= half; j += W) {
    const vec<T> aj = load(a + j), bj = load(b + j);
    store(y + j, aj * load(cosine + j) + bj * load(sine + j));
    store(y + half + j, bj * load(cosine + half + j) + aj * load(sine + half + j));
  }
  for (; j < half; ++j) {
    const T aj = a[j], bj = b[j];
    y[j] = aj * cosine[j] + bj * sine[j];
    y[half + j] = bj * cosine[half + j] + aj * sine[half + j];
  }
}

template <typename T> struct Turn : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const long H = w.heads;
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *cosine = this->at(w.cosine, i % w.angles * D), *sine = this->at(w.sine, i % w.angles * D);
      const T* x = this->at(w.a, i * 3 * H * D);
      for (long h = 0; h < H; ++h) {
        turned<T>(D / 2, x + h * D, cosine, sine, this->at(w.q, (i * H + h) * D));
        turned<T>(D / 2, x + (H + h) * D, cosine, sine, this->at(w.k, (i * H + h) * D));
      }
      std::copy_n(x + 2 * H * D, H * D, this->at(w.v, i * H * D));
    }
  }
};

template <typename T> struct TurnBack : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const long H = w.heads;
    const void* const given[3] = {w.to_q, w.to_k, w.to_v};
    std::vector<T> back(D);  // the sine of the way back: that of the other half
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *cosine = this->at(w.cosine, i % w.angles * D), *sine = this->at(w.sine, i % w.angles * D);
      std::copy_n(sine + D / 2, D / 2, back.data());
      std::copy_n(sine, D / 2, back.data() + D / 2);
      const long row = i / w.tokens, token = i % w.tokens;
      for (long which = 0; which < 3; ++which) {
        const int64_t* stride = w.to_strides + 3 * which;
        for (long h = 0; h < H; ++h) {
          const T* g = this->at(given[which], row * stride[0] + token * stride[1] + h * stride[2]);
          T* to = this->at(w.to_a, ((i * 3 + which) * H + h) * D);
          if (which < 2) turned<T>(D / 2, g, cosine, back.data(), to);
          else std::copy_n(g, D, to);
        }
      }
    }
  }
};

template <template <typename> class Worker> void run(const Work& work) {
  const int blocks = static_cast<int>((work.rows + BLOCK - 1) / BLOCK);
  run_in_its_precision<Worker>(work, blocks);
}

}  // namespace

extern "C" {
void rms(const Work* work) { run<Rms>(*work); }
void rms_back(const Work* work) { run<RmsBack>(*work); }
void gated(const Work* work) { run<Gated>(*work); }
void gated_back(const Work* work) { run<GatedBack>(*work); }
void turn(const Work* work) { run<Turn>(*work); }
void turn_back(const Work* work) { run<TurnBack>(*work); }
int size_of_work() { return sizeof(Work); }
}
