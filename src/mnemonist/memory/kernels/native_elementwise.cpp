// What stands between the matrix products of a model: norms, gated activations, rotations. Each is little arithmetic on
// much data, so each is one pass over it, and one back. A unit of work is a block of rows, whatever the number of
// threads, so that sums over rows do not depend on it.
//
//     rms             y = x / sqrt(mean(x^2) + eps) * weight
//     gated           y = silu(a) b
//     gated_norm      y = silu(a) rms(b), where a too is made normal if it has a weight
//     turn            q, k turned by the angles of their positions: (a, b) -> (a cos - b sin, b cos + a sin); v as it is

#include "native_matrix.h"

extern "C" {

// As `_Work` in native_elementwise.py. Pointers are to float or double.
struct Work {
  int64_t rows;                            // of rms and gated; of turn: tokens, B T
  int64_t a_stride, b_stride;              // between rows of a and b, and of their derivatives
  int64_t angles;                          // tokens after which the angles begin anew
  int64_t to_strides[9];                   // of to_q, to_k, to_v: over rows, tokens, heads
  int32_t width, heads, key_heads, tokens, threads, double_precision;
  double eps;
  const void *a, *b, *weight, *gate_weight, *cosine, *sine;
  void *y, *scale, *gate_scale;            // scales: [rows], what norms have divided by, inverted
  void *q, *k, *v;                         // [tokens, heads or key_heads, width]
  // The way back.
  const void *to_y, *to_q, *to_k, *to_v;
  void *to_a, *to_b;
  void *weight_sum, *gate_weight_sum;      // [blocks, width]: derivatives of weights, to be summed
};
}

namespace {

constexpr long BLOCK = 64;  // rows

template <typename T> struct Pass {
  const Work& w;
  const long D;
  explicit Pass(const Work& work) : w(work), D(work.width) {}

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  long begin(int n) const { return n * BLOCK; }
  long end(int n) const { return std::min<long>(w.rows, (n + 1) * BLOCK); }

  template <typename Each> void along(Each each) const { ::along<T>(D, each); }

  static vec<T> opened(vec<T> a) { return T(1) / (T(1) + exponential<T>(-a)); }
  static T opened(T a) { return T(1) / (T(1) + std::exp(-a)); }

  T inverse_rms(const T* x) const { return T(1) / std::sqrt(dot<T>(D, x, x) / T(D) + T(w.eps)); }

  // From the derivative with respect to what is normal, times the weight, to that of x:
  // scale (to - x scale^2 mean(to x))
  void through_rms(const T* x, T scale, T* to) const {
    const T share = dot<T>(D, to, x) / T(D) * scale * scale * scale;
    along([&](auto j) { j.put(to, j.of(to) * scale - j.of(x) * share); });
  }
  T* cleared(void* weights, int n) const {
    T* of_block = at(weights, n * D);
    std::fill_n(of_block, D, T(0));
    return of_block;
  }
};

template <typename T> struct Rms : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const T* weight = this->at(w.weight, 0);
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *x = this->at(w.a, i * D), scale = this->inverse_rms(x);
      T* y = this->at(w.y, i * D);
      *this->at(w.scale, i) = scale;
      this->along([&](auto j) { j.put(y, j.of(x) * scale * j.of(weight)); });
    }
  }
};

template <typename T> struct RmsBack : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const T* weight = this->at(w.weight, 0);
    T* to_weight = this->cleared(w.weight_sum, n);
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *x = this->at(w.a, i * D), *g = this->at(w.to_y, i * D), scale = *this->at(w.scale, i);
      T* to = this->at(w.to_a, i * D);
      this->along([&](auto j) {
        j.put(to_weight, j.of(to_weight) + j.of(g) * j.of(x) * scale);
        j.put(to, j.of(g) * j.of(weight));
      });
      this->through_rms(x, scale, to);
    }
  }
};

template <typename T> struct Gated : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *a = this->at(w.a, i * w.a_stride), *b = this->at(w.b, i * w.b_stride);
      T* y = this->at(w.y, i * D);
      this->along([&](auto j) {
        const auto aj = j.of(a);
        j.put(y, aj * this->opened(aj) * j.of(b));
      });
    }
  }
};

template <typename T> struct GatedBack : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *a = this->at(w.a, i * w.a_stride), *b = this->at(w.b, i * w.b_stride), *g = this->at(w.to_y, i * D);
      T *to_a = this->at(w.to_a, i * w.a_stride), *to_b = this->at(w.to_b, i * w.b_stride);
      this->along([&](auto j) {
        const auto aj = j.of(a), gj = j.of(g), gate = this->opened(aj), s = aj * gate;
        j.put(to_a, gj * j.of(b) * (gate + s * (T(1) - gate)));
        j.put(to_b, gj * s);
      });
    }
  }
};

template <typename T> struct GatedNorm : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const T *weight = this->at(w.weight, 0), *gate_weight = this->at(w.gate_weight, 0);
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *a = this->at(w.a, i * D), *b = this->at(w.b, i * D), scale = this->inverse_rms(b);
      T* y = this->at(w.y, i * D);
      *this->at(w.scale, i) = scale;
      const auto write = [&](auto j, auto aj) { j.put(y, aj * this->opened(aj) * (j.of(b) * scale * j.of(weight))); };
      if (gate_weight) {
        const T gate_scale = *this->at(w.gate_scale, i) = this->inverse_rms(a);
        this->along([&](auto j) { write(j, j.of(a) * gate_scale * j.of(gate_weight)); });
      } else {
        this->along([&](auto j) { write(j, j.of(a)); });
      }
    }
  }
};

template <typename T> struct GatedNormBack : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const T *weight = this->at(w.weight, 0), *gate_weight = this->at(w.gate_weight, 0);
    T* to_weight = this->cleared(w.weight_sum, n);
    T* to_gate_weight = gate_weight ? this->cleared(w.gate_weight_sum, n) : nullptr;
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *a = this->at(w.a, i * D), *b = this->at(w.b, i * D), *g = this->at(w.to_y, i * D);
      const T scale = *this->at(w.scale, i);
      T *to_a = this->at(w.to_a, i * D), *to_b = this->at(w.to_b, i * D);
      // Of what opens, `aj`; returns the derivative with respect to it.
      const auto derive = [&](auto j, auto aj) {
        const auto gate = this->opened(aj), s = aj * gate, bj = j.of(b) * scale, gj = j.of(g);
        j.put(to_b, gj * s * j.of(weight));
        j.put(to_weight, j.of(to_weight) + gj * s * bj);
        return gj * bj * j.of(weight) * (gate + s * (T(1) - gate));
      };
      if (gate_weight) {
        const T gate_scale = *this->at(w.gate_scale, i);
        this->along([&](auto j) {
          const auto normal = j.of(a) * gate_scale, to = derive(j, normal * j.of(gate_weight));
          j.put(to_a, to * j.of(gate_weight));
          j.put(to_gate_weight, j.of(to_gate_weight) + to * normal);
        });
        this->through_rms(a, gate_scale, to_a);
      } else {
        this->along([&](auto j) { j.put(to_a, derive(j, j.of(a))); });
      }
      this->through_rms(b, scale, to_b);
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
    const long H = w.heads, G = w.key_heads;
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *cosine = this->at(w.cosine, i % w.angles * D), *sine = this->at(w.sine, i % w.angles * D);
      const T* x = this->at(w.a, i * (H + 2 * G) * D);
      for (long h = 0; h < H; ++h) turned<T>(D / 2, x + h * D, cosine, sine, this->at(w.q, (i * H + h) * D));
      for (long g = 0; g < G; ++g) turned<T>(D / 2, x + (H + g) * D, cosine, sine, this->at(w.k, (i * G + g) * D));
      std::copy_n(x + (H + G) * D, G * D, this->at(w.v, i * G * D));
    }
  }
};

template <typename T> struct TurnBack : Pass<T> {
  using Pass<T>::Pass, Pass<T>::w, Pass<T>::D;
  void memory(int n) {
    const long heads[3] = {w.heads, w.key_heads, w.key_heads};
    const void* const given[3] = {w.to_q, w.to_k, w.to_v};
    std::vector<T> back(D);  // the sine of the way back: that of the other half
    for (long i = this->begin(n); i < this->end(n); ++i) {
      const T *cosine = this->at(w.cosine, i % w.angles * D), *sine = this->at(w.sine, i % w.angles * D);
      std::copy_n(sine + D / 2, D / 2, back.data());
      std::copy_n(sine, D / 2, back.data() + D / 2);
      const long row = i / w.tokens, token = i % w.tokens;
      T* to = this->at(w.to_a, i * (heads[0] + heads[1] + heads[2]) * D);
      for (long which = 0; which < 3; ++which) {
        const int64_t* stride = w.to_strides + 3 * which;
        for (long h = 0; h < heads[which]; ++h, to += D) {
          const T* g = this->at(given[which], row * stride[0] + token * stride[1] + h * stride[2]);
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
void gated_norm(const Work* work) { run<GatedNorm>(*work); }
void gated_norm_back(const Work* work) { run<GatedNormBack>(*work); }
void turn(const Work* work) { run<Turn>(*work); }
void turn_back(const Work* work) { run<TurnBack>(*work); }
int size_of_work() { return sizeof(Work); }
}
