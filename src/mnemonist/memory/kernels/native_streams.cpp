// What a token sends to a memory: a short causal convolution of every channel, a non-linearity, and queries and keys of
// norm 1, in one pass. Channels are independent but for the norm over a head, so a unit of work is one head of one of
// the three streams (queries, keys, values) for all tokens, and no two units write to the same place.
//
//     a_t = sum_i conv_i past_{t+i}      s_t = silu(a_t)      q_t, k_t = s_t / |s_t|      v_t = s_t
//
// Without unit keys, queries and keys are s_t too.

#include "native_matrix.h"

extern "C" {

// As `_Work` in native_streams.py. Pointers are to float or double; past is the tail, then x.
struct Work {
  int32_t B, T, H, D, taps, threads, double_precision, unit_keys;
  double shortest;                       // norms below it are taken as this
  const void *x, *tail, *conv;           // [B, T, 3 H D], [B, taps - 1, 3 H D], [taps, 3 H D]
  void *q, *k, *v, *next_tail;           // [B, T, H, D] each, and as the tail
  // The way back: derivatives of the outer loss.
  const void *to_q, *to_k, *to_v, *to_next_tail;
  void *to_x, *to_tail, *to_conv;
};
}

namespace {

constexpr long AHEAD = 8;  // tokens: how far what is needed soon is asked for

template <typename T> class Streams {
  static constexpr int W = Vector<T>::width;

 public:
  explicit Streams(const Work& work)
      : w(work), D(work.D), padded((D + W - 1) / W * W), kept(work.taps - 1), channels(3L * work.H * work.D),
        sum(padded), out(padded), slope(padded), taps(static_cast<long>(work.taps) * padded),
        to_taps(taps.size()), ring(taps.size()) {}

 protected:
  const Work& w;
  const int D, padded, kept;
  const long channels;
  long first = 0;                         // of the unit's channels
  array<T> sum, out, slope, taps, to_taps, ring;

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }

  void enter(int unit) {
    first = static_cast<long>(unit) * D;
    for (int i = 0; i < w.taps; ++i) std::copy_n(at(w.conv, i * channels + first), D, taps.data() + i * padded);
  }
  const T* past(long b, long p) const {
    return p < kept ? at(w.tail, (b * kept + p) * channels + first) : at(w.x, (b * w.T + p - kept) * channels + first);
  }
  // A head is a short piece of a long row, too far from the same piece of the next one for the processor to foresee it.
  void expect(const T* ahead) const {
    for (int j = 0; j < D; j += 64 / static_cast<int>(sizeof(T))) __builtin_prefetch(ahead + j);
  }
  // Where a token's part of a tensor [B, T, H, D] is: of queries, keys or values, by the unit.
  template <typename P> auto* place(P* const (&streams)[3], int unit, long b, long t) const {
    return at(streams[unit / w.H], ((b * w.T + t) * w.H + unit % w.H) * D);
  }

  // a += b * c
  void add_product(T* a, const T* b, const T* c) const {
    int j = 0;
    for (; j + W <= D; j += W) store(a + j, load(a + j) + load(b + j) * load(c + j));
    for (; j < D; ++j) a[j] += b[j] * c[j];
  }

  bool normed(int unit) const { return w.unit_keys && unit / w.H < 2; }

  // The convolution and its non-linearity; returns what the token is divided by.
  T token(int unit, long b, long t, bool derive) {
    std::fill(sum.begin(), sum.end(), T(0));
    for (int i = 0; i < w.taps; ++i) add_product(sum.data(), taps.data() + i * padded, past(b, t + i));
    for (int j = 0; j < padded; j += W) {
      const vec<T> a = load(&sum[j]), gate = T(1) / (T(1) + exponential<T>(-a)), s = a * gate;
      store(&out[j], s);
      if (derive) store(&slope[j], gate + s * (T(1) - gate));
    }
    if (!normed(unit)) return 1;
    const T norm = std::max(std::sqrt(dot<T>(padded, out.data(), out.data())), T(w.shortest));
    const T inverse = 1 / norm;
    for (int j = 0; j < padded; ++j) out[j] *= inverse;
    return norm;
  }
};

template <typename T> class Sender : Streams<T> {
  using Base = Streams<T>;
  using Base::w, Base::D, Base::kept, Base::channels, Base::first, Base::out;

 public:
  explicit Sender(const Work& work) : Base(work) {}

  void memory(int unit) {
    void* const streams[3] = {w.q, w.k, w.v};
    this->enter(unit);
    for (long b = 0; b < w.B; ++b) {
      for (long t = 0; t < w.T; ++t) {
        this->expect(this->past(b, std::min(t + AHEAD, w.T + kept - 1L)));
        this->expect(this->place(streams, unit, b, std::min(t + AHEAD, w.T - 1L)));
        this->token(unit, b, t, false);
        std::copy_n(out.data(), D, this->place(streams, unit, b, t));
      }
      for (int j = 0; j < kept; ++j)
        std::copy_n(this->past(b, w.T + j), D, this->at(w.next_tail, (b * kept + j) * channels + first));
    }
  }
};

template <typename T> class WayBack : Streams<T> {
  using Base = Streams<T>;
  using Base::w, Base::D, Base::padded, Base::kept, Base::channels, Base::first, Base::out, Base::slope, Base::taps;
  using Base::to_taps, Base::ring;

 public:
  explicit WayBack(const Work& work) : Base(work) {}

  void memory(int unit) {
    const void* const streams[3] = {w.to_q, w.to_k, w.to_v};
    this->enter(unit);
    std::fill(to_taps.begin(), to_taps.end(), T(0));
    for (long b = 0; b < w.B; ++b) {
      std::fill(ring.begin(), ring.end(), T(0));  // derivatives of the last sums, by token modulo taps
      for (long p = 0; p < w.T + kept; ++p) {
        T* to_sum = ring.data() + p % w.taps * padded;
        const long ahead = std::min(p + AHEAD, w.T - 1L);
        this->expect(this->past(b, ahead + kept));
        this->expect(this->place(streams, unit, b, ahead));
        this->expect(this->at(w.to_x, (b * w.T + ahead) * channels + first));
        if (p < w.T) {
          const T *grad = this->place(streams, unit, b, p), norm = this->token(unit, b, p, true);
          const T along = !this->normed(unit) || norm <= T(w.shortest) ? T(0) : dot<T>(D, grad, out.data());
          const T inverse = 1 / norm, *o = out.data(), *s = slope.data();
          for (int j = 0; j < D; ++j) to_sum[j] = (grad[j] - along * o[j]) * inverse * s[j];
          for (int i = 0; i < w.taps; ++i) this->add_product(to_taps.data() + i * padded, to_sum, this->past(b, p + i));
        } else {
          std::fill_n(to_sum, D, T(0));
        }
        T* to = p < kept ? this->at(w.to_tail, (b * kept + p) * channels + first)
                         : this->at(w.to_x, (b * w.T + p - kept) * channels + first);
        if (p < w.T) std::fill_n(to, D, T(0));
        else std::copy_n(this->at(w.to_next_tail, (b * kept + p - w.T) * channels + first), D, to);
        for (int i = 0; i < w.taps; ++i)
          this->add_product(to, taps.data() + i * padded, ring.data() + (p + w.taps - i) % w.taps * padded);
      }
    }
    for (int i = 0; i < w.taps; ++i)
      std::copy_n(to_taps.data() + i * padded, D, this->at(w.to_conv, i * channels + first));
  }
};

}  // namespace

extern "C" {
void send(const Work* work) {
  if (work->double_precision) run_all<Sender<double>>(*work, 3 * work->H, work->threads);
  else run_all<Sender<float>>(*work, 3 * work->H, work->threads);
}
void go_back(const Work* work) {
  if (work->double_precision) run_all<WayBack<double>>(*work, 3 * work->H, work->threads);
  else run_all<WayBack<float>>(*work, 3 * work->H, work->threads);
}
int size_of_work() { return sizeof(Work); }
}
