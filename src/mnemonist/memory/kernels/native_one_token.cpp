// One token for each memory: the equations of recurrent.py, with gradients at the start of a chunk. There is nothing
// that a token could share with others: what takes the time is to fetch weights, and each is loaded, moved, asked and
// stored once. Rows of a batch may stand anywhere in their chunks.
//
//     x_1 = k    a_i = x_i A_i    x_{i+1} = act(a_i)           d_i: errors sent back from the inner loss
//     S_i' = eta S_i - theta x_i^T d_i      M_i' = (1 - alpha) M_i + alpha target_i + S_i'
//     z_1 = q    z_{i+1} = act(z_i M_i')                       or z_i M_i, if it is asked before the write
//
// with A the anchor, and without momentum the step alone in the place of S'.

#include "native_network.h"

extern "C" {

constexpr int MOST_LAYERS = 8;

// As `_Work` in native_one_token.py. Pointers are to float or double; N = B H memories.
struct Work {
  int32_t B, H, depth, threads, double_precision, activation, objective, norm, residual, denominator;
  int32_t rates;                             // of decay: none, one for a head, or one for every row of its matrices
  int32_t momentum, targets, read_before, past_caches;
  int32_t sizes[MOST_LAYERS + 1];
  double huber_delta, norm_eps;
  const void *q, *k, *v;                     // [N, K], [N, K], [N, V]
  const void *step_size, *log_momentum, *log_decay;       // [N], [N], [N, rates]
  const uint8_t *real, *begins, *ends;       // [B]: no padding; its chunk begins with this token; it ends with it
  const void *target[MOST_LAYERS];           // [H, D_in, D_out] each
  const void *weights[MOST_LAYERS], *moving[MOST_LAYERS], *anchor[MOST_LAYERS];  // [N, D_in, D_out] each
  void *next_weights[MOST_LAYERS], *next_moving[MOST_LAYERS];
  void *next_anchor[MOST_LAYERS];            // or null, where no chunk begins or ends
  void* y;                                   // [N, V]
  void *loss, *gradient_norm;                // [N], or null
};
}

namespace {

template <typename T> class OneToken {
 public:
  explicit OneToken(const Work& work)
      : w(work), L(work.depth), network(work, work.sizes[work.depth]), error(network.V) {
    for (int i = 0; i < L; ++i) {
      const int out = w.sizes[i + 1];
      for (auto* group : {&inputs, &slopes, &errors}) group->emplace_back(out);
    }
    for (auto* one : {&asked, &answer}) one->resize(*std::max_element(w.sizes, w.sizes + L + 1));
    for (auto* one : {&left, &pull}) one->resize(std::max(w.rates, 1));
  }

  void memory(int number) {
    n = number, b = n / w.H;
    if (w.real && !w.real[b]) leave();
    else read();
    if (w.next_anchor[0])
      for (int i = 0; i < L; ++i)
        copy(w.ends[b] ? own(w.next_weights, i) : w.begins[b] ? own(w.weights, i) : own(w.anchor, i),
             own(w.next_anchor, i), numbers(i));
  }

 private:
  const Work& w;
  const int L;
  const Network<T> network;
  long n = 0, b = 0;
  T theta = 0, eta = 0;
  array<T> error, asked, answer, left, pull;
  std::vector<array<T>> inputs, slopes, errors;  // of layer i: what the next one sees; derivatives there; errors

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  long numbers(int i) const { return static_cast<long>(w.sizes[i]) * w.sizes[i + 1]; }
  const T* own(const void* const* group, int i) const { return at(group[i], n * numbers(i)); }
  T* own(void* const* group, int i) const { return at(group[i], n * numbers(i)); }
  const T* key() const { return at(w.k, n * w.sizes[0]); }
  const T* seen(int i) const { return i ? inputs[i - 1].data() : key(); }
  const T* taken_at(int i) const { return own(w.begins[b] ? w.weights : w.anchor, i); }

  void copy(const T* from, T* to, long count) const {
    if (w.past_caches) along<T>(count, [&](auto j) { j.put_past_caches(to, j.of(from)); });
    else std::copy_n(from, count, to);
  }

  // Padding changes nothing.
  void leave() {
    for (int i = 0; i < L; ++i) {
      copy(own(w.weights, i), own(w.next_weights, i), numbers(i));
      if (w.momentum) copy(own(w.moving, i), own(w.next_moving, i), numbers(i));
    }
    std::fill_n(at(w.y, n * network.V), network.V, T(0));
    if (w.loss) *at(w.loss, n) = *at(w.gradient_norm, n) = 0;
  }

  void read() {
    gates();
    gradient();
    long row = 0;  // of all matrices, one after the other: each may forget at its own rate
    const T* z = at(w.q, n * w.sizes[0]);
    for (int i = 0; i < L; ++i) {
      write(i, row, z);
      row += w.sizes[i];
      if (i + 1 == L) break;
      network.activate(w.sizes[i + 1], answer.data(), asked.data(), nullptr, nullptr);
      z = asked.data();
    }
    network.normalise(answer.data());
    const T* q = at(w.q, n * w.sizes[0]);
    for (int j = 0; j < network.V; ++j) at(w.y, n * network.V)[j] = answer[j] + (w.residual ? q[j] : T(0));
  }

  void gates() {
    theta = *at(w.step_size, n);
    eta = w.momentum ? std::exp(*at(w.log_momentum, n)) : T(0);
    left[0] = 1, pull[0] = 0;
    for (int j = 0; j < w.rates; ++j) {
      const T log = at(w.log_decay, n * w.rates)[j];
      left[j] = std::exp(log), pull[j] = -std::expm1(log);
    }
  }

  // The errors of all layers, at the weights that this chunk takes its gradients at.
  void gradient() {
    for (int i = 0; i < L; ++i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      T* a = (i + 1 == L ? errors : inputs)[i].data();
      std::fill_n(a, out, T(0));
      weighted_sum<T>(out, in, seen(i), taken_at(i), out, 1, a);
      if (i + 1 < L) network.activate(out, a, a, slopes[i].data(), nullptr);
    }
    T* last = errors[L - 1].data();
    const T* value = at(w.v, n * network.V);
    const T inverse = network.normalise(last);
    if (w.loss) *at(w.loss, n) = network.loss(last, key(), value);
    network.error(last, key(), value, error.data());
    network.through_norm(last, inverse, error.data(), last);
    for (int i = L - 1; i > 0; --i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      T* d = errors[i - 1].data();
      inner_products<T>(out, errors[i].data(), taken_at(i), out, in, 1, d);
      for (int j = 0; j < in; ++j) d[j] *= slopes[i - 1][j];
    }
    if (!w.gradient_norm) return;
    T squares = 0;
    for (int i = 0; i < L; ++i)
      squares += dot<T>(w.sizes[i], seen(i), seen(i)) * dot<T>(w.sizes[i + 1], errors[i].data(), errors[i].data());
    *at(w.gradient_norm, n) = std::sqrt(squares);
  }

  // Write into a layer, and ask it with z; its rows of weights count from `row`.
  void write(int i, long row, const T* z) {
    std::fill_n(answer.data(), w.sizes[i + 1], T(0));
    const auto rows = [&](auto moves, auto drawn) {
      long r = 0;
      for (; r + 2 <= w.sizes[i]; r += 2) write_rows<moves.value, drawn.value, 2>(i, r, row, z);
      for (; r < w.sizes[i]; ++r) write_rows<moves.value, drawn.value, 1>(i, r, row, z);
    };
    const std::true_type yes{};
    const std::false_type no{};
    if (w.momentum) w.targets ? rows(yes, yes) : rows(yes, no);
    else w.targets ? rows(no, yes) : rows(no, no);
  }

  template <bool MOVES, bool DRAWN, int R> void write_rows(int i, long r, long row, const T* z) {
    const int out = w.sizes[i + 1];
    const long from = r * out;
    const T *met = own(w.weights, i) + from, *d = errors[i].data();
    const T* moving = MOVES ? own(w.moving, i) + from : nullptr;
    const T* target = DRAWN ? at(w.target[i], n % w.H * numbers(i)) + from : nullptr;
    T *after = own(w.next_weights, i) + from, *after_moving = MOVES ? own(w.next_moving, i) + from : nullptr;
    T by[R], keep[R], draw[R], ask[R];
    for (int u = 0; u < R; ++u) {
      const long rate = w.rates > 1 ? row + r + u : 0;
      by[u] = -theta * seen(i)[r + u], keep[u] = left[rate], draw[u] = pull[rate], ask[u] = z[r + u];
    }
    along<T>(out, [&](auto j) {
      const auto put = [&](T* to, auto numbers) {
        if (w.past_caches) j.put_past_caches(to, numbers);
        else j.put(to, numbers);
      };
      auto y = j.of(answer.data());
      const auto error = j.of(d);
      for (int u = 0; u < R; ++u) {
        const long own_row = static_cast<long>(u) * out;
        const auto was = j.of(met + own_row);
        auto step = error * by[u], is = was * keep[u];
        if constexpr (MOVES) {
          step += j.of(moving + own_row) * eta;
          put(after_moving + own_row, step);
        }
        if constexpr (DRAWN) is += j.of(target + own_row) * draw[u];
        is += step;
        put(after + own_row, is);
        y += (w.read_before ? was : is) * ask[u];
      }
      j.put(answer.data(), y);
    });
  }
};

}  // namespace

extern "C" {
void read_one_token(const Work* work) { run_in_its_precision<OneToken>(*work, work->B * work->H); }
int size_of_work() { return sizeof(Work); }
}
