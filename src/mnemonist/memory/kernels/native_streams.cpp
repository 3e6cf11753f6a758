// What a token sends to a memory: a short causal convolution of every channel, a non-linearity, and queries and keys of
// norm 1, in one pass. A unit of work is a block of tokens with all their channels, which lie side by side; it computes
// what it needs of the tokens before it itself, and no two units write to the same place.
//
//     a_t = sum_i conv_i past_{t+i}      s_t = silu(a_t)      q_t, k_t = s_t / |s_t|      v_t = s_t
//
// Without unit keys, queries and keys are s_t too. A token has one query and as many keys and values as it writes, in
// this order: N = (1 + 2 writes) H D channels.

#include "native_matrix.h"

extern "C" {

// As `_Work` in native_streams.py. Pointers are to float or double; past is the tail, then x.
struct Work {
  int32_t B, T, H, D, writes, taps, threads, double_precision, unit_keys;
  double shortest;                       // norms below it are taken as this
  const void *x, *tail, *conv;           // [B, T, N], [B, taps - 1, N], [taps, N]
  void *q, *k, *v, *next_tail;           // [B, T, H, D], [B, T, writes, H, D] both, and as the tail
  // The way back: derivatives of the outer loss.
  const void *to_q, *to_k, *to_v, *to_next_tail;
  void *to_x, *to_tail, *to_conv;         // to_conv: [units, taps, N], to be summed
};
}

namespace {

constexpr long BLOCK = 64;  // tokens of a unit

template <typename T> class Streams {
 public:
  static constexpr int W = Vector<T>::width;

  explicit Streams(const Work& work)
      : w(work), D(work.D), inner(static_cast<long>(work.H) * D), channels(first(3)), kept(work.taps - 1),
        blocks((work.T + BLOCK - 1) / BLOCK), past(work.taps) {}

 protected:
  const Work& w;
  const long D, inner, channels, kept, blocks;
  long b = 0, begin = 0, end = 0;         // of the unit: its row and tokens
  std::vector<const T*> past;             // what a token sees, the oldest first

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  void enter(int unit) {
    b = unit / blocks, begin = unit % blocks * BLOCK;
    end = std::min<long>(w.T, begin + BLOCK);
  }
  // Place p of what tokens see: the tail, then the tokens.
  const T* seen(long p) const {
    return p < kept ? at(w.tail, (b * kept + p) * channels) : at(w.x, (b * w.T + p - kept) * channels);
  }
  void look(long t) {
    for (int i = 0; i < w.taps; ++i) past[i] = seen(t + i);
  }
  // Channels of a stream (queries, keys, values), the first of them, and where those of a token go.
  long width(int stream) const { return stream ? w.writes * inner : inner; }
  long first(int stream) const { return stream ? inner + (stream - 1) * w.writes * inner : 0; }
  long place(long t, int stream) const { return (b * w.T + t) * width(stream); }
  bool normed(int stream) const { return w.unit_keys && stream < 2; }

  // Calls `each` for vectors of `count` channels from `first` on, and `one` for those that are left.
  template <typename Each, typename One> static void along(long first, long count, Each each, One one) {
    long j = first;
    for (; j + W <= first + count; j += W) each(j);
    for (; j < first + count; ++j) one(j);
  }
  vec<T> convolved(long j) const {
    vec<T> sum{};
    for (int i = 0; i < w.taps; ++i) sum += load(at(w.conv, i * channels + j)) * load(past[i] + j);
    return sum;
  }
  T convolved_one(long j) const {
    T sum = 0;
    for (int i = 0; i < w.taps; ++i) sum += *at(w.conv, i * channels + j) * past[i][j];
    return sum;
  }
  T length(const T* head) const { return std::max(std::sqrt(dot<T>(D, head, head)), T(w.shortest)); }
};

template <typename T> class Sender : Streams<T> {
  using Base = Streams<T>;
  using Base::w, Base::D, Base::kept, Base::channels, Base::b, Base::begin, Base::end, Base::at;

 public:
  explicit Sender(const Work& work) : Base(work) {}

  void memory(int unit) {
    void* const streams[3] = {w.q, w.k, w.v};
    this->enter(unit);
    for (long t = begin; t < end; ++t) {
      this->look(t);
      for (int s = 0; s < 3; ++s) {
        T* to = at(streams[s], this->place(t, s));
        const long first = this->first(s), width = this->width(s);
        this->along(
            first, width,
            [&](long j) {
              const vec<T> a = this->convolved(j);
              store(to + j - first, a / (T(1) + exponential<T>(-a)));
            },
            [&](long j) {
              const T a = this->convolved_one(j);
              to[j - first] = a / (T(1) + std::exp(-a));
            });
        if (!this->normed(s)) continue;
        for (T* head = to; head < to + width; head += D) {
          const T inverse = 1 / this->length(head);
          this->along(0, D, [&](long j) { store(head + j, load(head + j) * inverse); }, [&](long j) { head[j] *= inverse; });
        }
      }
    }
    if (end == w.T)
      for (long j = 0; j < kept; ++j)
        std::copy_n(this->seen(w.T + j), channels, at(w.next_tail, (b * kept + j) * channels));
  }
};

template <typename T> class WayBack : Streams<T> {
  using Base = Streams<T>;
  using Base::w, Base::D, Base::kept, Base::channels, Base::b, Base::begin, Base::end, Base::at, Base::past;

 public:
  explicit WayBack(const Work& work) : Base(work), out(channels), slope(channels), ring(w.taps * channels) {}

  void memory(int unit) {
    this->enter(unit);
    T* to_conv = at(w.to_conv, static_cast<long>(unit) * w.taps * channels);
    std::fill_n(to_conv, w.taps * channels, T(0));
    std::fill(ring.begin(), ring.end(), T(0));
    for (long t = std::max(0L, begin - kept); t < begin; ++t) token(t);
    for (long t = begin; t < end; ++t) {
      T* to_sum = token(t);
      for (int i = 0; i < w.taps; ++i) {
        T* to = to_conv + i * channels;
        const T* from = past[i];
        this->along(
            0, channels, [&](long j) { store(to + j, load(to + j) + load(to_sum + j) * load(from + j)); },
            [&](long j) { to[j] += to_sum[j] * from[j]; });
      }
      send_back(t, nullptr);
    }
    if (end < w.T) return;
    for (long p = w.T; p < w.T + kept; ++p) {
      std::fill_n(row(p), channels, T(0));
      send_back(p, at(w.to_next_tail, (b * kept + p - w.T) * channels));
    }
  }

 private:
  array<T> out, slope, ring;              // ring: derivatives of the last tokens' sums, by token modulo taps

  T* row(long t) { return ring.data() + (t + w.taps) % w.taps * channels; }

  // The derivative with respect to the sums of a token.
  T* token(long t) {
    const void* const streams[3] = {w.to_q, w.to_k, w.to_v};
    T *to = row(t), *o = out.data(), *s = slope.data();
    this->look(t);
    this->along(
        0, channels,
        [&](long j) {
          const vec<T> a = this->convolved(j), gate = T(1) / (T(1) + exponential<T>(-a)), y = a * gate;
          store(o + j, y);
          store(s + j, gate + y * (T(1) - gate));
        },
        [&](long j) {
          const T a = this->convolved_one(j), gate = 1 / (1 + std::exp(-a));
          o[j] = a * gate;
          s[j] = gate + o[j] * (1 - gate);
        });
    for (int stream = 0; stream < 3; ++stream) {
      const T* grads = at(streams[stream], this->place(t, stream));
      const long first = this->first(stream), width = this->width(stream);
      if (!this->normed(stream)) {
        this->along(
            first, width, [&](long j) { store(to + j, load(grads + j - first) * load(s + j)); },
            [&](long j) { to[j] = grads[j - first] * s[j]; });
        continue;
      }
      for (long j = 0; j < width; j += D) {
        const T *grad = grads + j, *head = o + first + j, *bend = s + first + j;
        T* sum = to + first + j;
        const T norm = this->length(head), inverse = 1 / norm;
        // Of what is shorter than the shortest, the divisor is no function.
        const T share = norm <= T(w.shortest) ? T(0) : dot<T>(D, grad, head) * inverse * inverse;
        this->along(
            0, D, [&](long j) { store(sum + j, (load(grad + j) - share * load(head + j)) * inverse * load(bend + j)); },
            [&](long j) { sum[j] = (grad[j] - share * head[j]) * inverse * bend[j]; });
      }
    }
    return to;
  }

  // The derivative with respect to place p of what tokens see, from those of the tokens that see it.
  void send_back(long p, const T* more) {
    T* to = p < kept ? at(w.to_tail, (b * kept + p) * channels) : at(w.to_x, (b * w.T + p - kept) * channels);
    this->along(
        0, channels,
        [&](long j) {
          vec<T> sum{};
          if (more) sum = load(more + j);
          for (int i = 0; i < w.taps; ++i) sum += load(at(w.conv, i * channels + j)) * load(row(p - i) + j);
          store(to + j, sum);
        },
        [&](long j) {
          T sum = more ? more[j] : T(0);
          for (int i = 0; i < w.taps; ++i) sum += *at(w.conv, i * channels + j) * row(p - i)[j];
          to[j] = sum;
        });
  }
};

template <template <typename> class Worker> void run(const Work& work) {
  const int units = work.B * ((work.T + BLOCK - 1) / BLOCK);
  run_in_its_precision<Worker>(work, units);
}

}  // namespace

extern "C" {
void send(const Work* work) { run<Sender>(*work); }
void go_back(const Work* work) { run<WayBack>(*work); }
int size_of_work() { return sizeof(Work); }
}
