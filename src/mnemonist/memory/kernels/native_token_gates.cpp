// Gates that follow from tokens, in one pass over them and one back: a layer's embeddings x meet the thin matrices of up
// to three gates. A unit of work is a block of rows, whatever the number of threads, so that sums over rows do not depend
// on it; each number is summed in one order, whatever the rows beside it.
//
//     l = x W^T + b, of each gate      step size = bound sigmoid(l_step) sigmoid(-l_momentum)
//     log momentum = -min(softplus(-l_momentum), longest)      log decay = -softplus(l_decay)
//
// The step size and the momentum have as many channels as each other. Without momentum its factor is left out.

#include "native_matrix.h"

extern "C" {

// As `_WORK` in native_token_gates.py. Pointers are to float or double; gates are step size, momentum, decay, and those
// that there are not have no channels.
struct Work {
  int64_t rows, width, threads, double_precision;
  int64_t channels[3];
  double bound, longest;
  const void* x;                  // [rows, width]
  const void *weight[3], *bias[3];  // [channels, width], [channels]
  void* logits[3];                // [rows, channels]: l; null where nobody will go back
  void* gate[3];                  // [rows, channels]
  // The way back: derivatives of the outer loss.
  const void* to_gate[3];
  void *to_x, *to_weight, *to_bias;  // [rows, width]; [units, all channels, width] and [units, all channels], to be summed
};
}

namespace {

constexpr long UNIT = 128;  // rows
enum { STEP, MOMENTUM, DECAY, GATES };

template <typename T> struct Gating {
  static constexpr int W = Vector<T>::width;
  const Work& w;
  const long width, count;  // count: channels of all gates
  explicit Gating(const Work& work)
      : w(work), width(work.width), count(work.channels[STEP] + work.channels[MOMENTUM] + work.channels[DECAY]) {}

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  static long begin(int n) { return n * UNIT; }
  long end(int n) const { return std::min<long>(w.rows, (n + 1) * UNIT); }

  // Calls `each` with vectors of so many numbers at a time, the last filled up: every number is made in one way.
  template <int In, int Out, typename Each>
  static void along(long size, const T* const (&from)[In], T* const (&to)[Out], Each each) {
    vec<T> in[In], out[Out];
    for (long j = 0; j < size; j += W) {
      const long some = std::min<long>(W, size - j);
      for (int i = 0; i < In; ++i)
        if (some == W) {
          in[i] = load(from[i] + j);
        } else {
          T rest[W] = {};
          std::copy_n(from[i] + j, some, rest);
          in[i] = load(rest);
        }
      each(in, out);
      for (int i = 0; i < Out; ++i)
        if (some == W) {
          store(to[i] + j, out[i]);
        } else {
          T rest[W];
          store(rest, out[i]);
          std::copy_n(rest, some, to[i] + j);
        }
    }
  }

  static vec<T> opened(vec<T> l) { return T(1) / (T(1) + exponential<T>(-l)); }

  // log(1 + exp(l)): of e = exp(-|l|) up to 1, log(1 + e) = 2 artanh(e / (2 + e)) by its series.
  static vec<T> softplus(vec<T> l) {
    constexpr int terms = sizeof(T) == 4 ? 8 : 18;
    const vec<T> zero{}, e = exponential<T>(l > 0 ? -l : l), z = e / (T(2) + e), square = z * z;
    vec<T> sum = zero + T(1) / T(2 * terms + 1);
    for (int i = terms - 1; i >= 0; --i) sum = sum * square + T(1) / T(2 * i + 1);
    return (l > 0 ? l : zero) + T(2) * z * sum;
  }
};

template <typename T> struct Gates : Gating<T> {
  using Gating<T>::W, Gating<T>::w, Gating<T>::width;
  array<T> room;

  explicit Gates(const Work& work) : Gating<T>(work), room(w.logits[STEP] ? 0 : std::min<long>(w.rows, UNIT) * this->count) {}

  void memory(int n) {
    const long first = this->begin(n), rows = this->end(n) - first;
    T *l[GATES], *to[GATES], *next = room.data();
    for (int gate = 0; gate < GATES; ++gate) {
      const long channels = w.channels[gate];
      l[gate] = w.logits[gate] ? this->at(w.logits[gate], first * channels) : next;
      next += rows * channels;
      to[gate] = this->at(w.gate[gate], first * channels);
      products(gate, first, rows, l[gate]);
    }
    const T bound = static_cast<T>(w.bound), longest = static_cast<T>(w.longest);
    const long size = rows * w.channels[STEP];
    if (w.channels[MOMENTUM]) {
      this->template along<2, 2>(size, {l[STEP], l[MOMENTUM]}, {to[STEP], to[MOMENTUM]}, [&](vec<T>* in, vec<T>* out) {
        const vec<T> fading = this->softplus(-in[1]);
        out[0] = bound * this->opened(in[0]) * this->opened(-in[1]);
        out[1] = -(fading > longest ? vec<T>{} + longest : fading);
      });
    } else {
      this->template along<1, 1>(size, {l[STEP]}, {to[STEP]}, [&](vec<T>* in, vec<T>* out) { out[0] = bound * this->opened(in[0]); });
    }
    this->template along<1, 1>(rows * w.channels[DECAY], {l[DECAY]}, {to[DECAY]},
                               [&](vec<T>* in, vec<T>* out) { out[0] = -this->softplus(in[0]); });
  }

 private:
  void products(int gate, long first, long rows, T* to) const {
    const long channels = w.channels[gate];
    for (long r = 0; r < rows; r += 4)
      for (long c = 0; c < channels; c += 4) {
        const T* x = this->at(w.x, (first + r) * width);
        const T *weight = this->at(w.weight[gate], c * width), *bias = this->at(w.bias[gate], c);
        tile(std::min(4L, rows - r), std::min(4L, channels - c), x, weight, bias, to + r * channels + c, channels);
      }
  }

  // Of up to 4 rows and channels; what is missing is computed again in place of it.
  void tile(long rows, long channels, const T* x, const T* weight, const T* bias, T* to, long stride) const {
    vec<T> sums[4][4] = {};
    const T *row[4], *channel[4];
    for (long i = 0; i < 4; ++i) row[i] = x + std::min(i, rows - 1) * width;
    for (long i = 0; i < 4; ++i) channel[i] = weight + std::min(i, channels - 1) * width;
    const auto add = [&](auto from, long j) {
      vec<T> column[4];
      for (int k = 0; k < 4; ++k) column[k] = from(channel[k] + j);
      for (int i = 0; i < 4; ++i) {
        const vec<T> one = from(row[i] + j);
        for (int k = 0; k < 4; ++k) sums[i][k] += one * column[k];
      }
    };
    const long whole = width / W * W;
    for (long j = 0; j < whole; j += W) add([](const T* p) { return load(p); }, j);
    if (whole < width)
      add(
          [rest = width - whole](const T* p) {
            T some[W] = {};
            std::copy_n(p, rest, some);
            return load(some);
          },
          whole);
    for (long i = 0; i < rows; ++i)
      for (long k = 0; k < channels; ++k) to[i * stride + k] = total<T>(sums[i][k]) + bias[k];
  }
};

template <typename T> struct GatesBack : Gating<T> {
  using Gating<T>::W, Gating<T>::w, Gating<T>::width, Gating<T>::count;
  array<T> weights, to_logits, strip;

  explicit GatesBack(const Work& work) : Gating<T>(work), weights(count * width), to_logits(UNIT * count), strip(2 * W * std::max(UNIT, count)) {
    T* to = weights.data();
    for (int gate = 0; gate < GATES; ++gate) to = std::copy_n(this->at(w.weight[gate], 0), w.channels[gate] * width, to);
  }

  void memory(int n) {
    const long first = this->begin(n), rows = this->end(n) - first;
    derive(first, rows);
    // Of each row, gate after gate.
    array<T> all(rows * count);
    long before = 0;
    for (int gate = 0; gate < GATES; ++gate) {
      const long channels = w.channels[gate];
      const T* from = to_logits.data() + UNIT * before;
      for (long r = 0; r < rows; ++r) std::copy_n(from + r * channels, channels, all.data() + r * count + before);
      before += channels;
    }
    T* to_bias = this->at(w.to_bias, n * count);
    std::fill_n(to_bias, count, T(0));
    for (long r = 0; r < rows; ++r)
      for (long k = 0; k < count; ++k) to_bias[k] += all[r * count + k];
    const T* x = this->at(w.x, first * width);
    product<T>(rows, width, count, all.data(), count, 1, weights.data(), width, 1, this->at(w.to_x, first * width), width, strip.data());
    product<T>(count, width, rows, all.data(), 1, count, x, width, 1, this->at(w.to_weight, n * count * width), width, strip.data());
  }

 private:
  void derive(long first, long rows) {
    const T *l[GATES], *grad[GATES];
    T* to[GATES];
    long before = 0;
    for (int gate = 0; gate < GATES; ++gate) {
      const long channels = w.channels[gate];
      l[gate] = this->at(w.logits[gate], first * channels);
      grad[gate] = this->at(w.to_gate[gate], first * channels);
      to[gate] = to_logits.data() + UNIT * before;
      before += channels;
    }
    const T bound = static_cast<T>(w.bound), longest = static_cast<T>(w.longest);
    const long size = rows * w.channels[STEP];
    if (w.channels[MOMENTUM]) {
      this->template along<4, 2>(size, {l[STEP], l[MOMENTUM], grad[STEP], grad[MOMENTUM]}, {to[STEP], to[MOMENTUM]},
                                 [&](vec<T>* in, vec<T>* out) {
                                   const vec<T> step = this->opened(in[0]), rest = this->opened(-in[1]), zero{};
                                   const vec<T> moved = in[2] * (bound * step * rest);
                                   const vec<T> kept = this->softplus(-in[1]) > longest ? zero : in[3];
                                   out[0] = moved * (T(1) - step);
                                   out[1] = kept * rest - moved * this->opened(in[1]);
                                 });
    } else {
      this->template along<2, 1>(size, {l[STEP], grad[STEP]}, {to[STEP]}, [&](vec<T>* in, vec<T>* out) {
        const vec<T> step = this->opened(in[0]);
        out[0] = in[1] * (bound * step) * (T(1) - step);
      });
    }
    this->template along<2, 1>(rows * w.channels[DECAY], {l[DECAY], grad[DECAY]}, {to[DECAY]},
                               [&](vec<T>* in, vec<T>* out) { out[0] = -in[1] * this->opened(in[0]); });
  }
};

template <template <typename> class Worker> void run(const Work& work) {
  run_in_its_precision<Worker>(work, static_cast<int>((work.rows + UNIT - 1) / UNIT));
}

}  // namespace

extern "C" {
void gates(const Work* work) { run<Gates>(*work); }
void gates_back(const Work* work) { run<GatesBack>(*work); }
int size_of_work() { return sizeof(Work); }
}
