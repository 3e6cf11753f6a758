// Chunks read one after the other, one memory at a time: its weights, its momentum and a chunk's activations stay in
// the cache of one core, and the scalings by gates ride on the matrix products. The equations are those of chunked.py;
// what is left of every write at every token is in native_gates.h.
//
// Matrices are row-major. Tensors of tokens are [B, T, H, ...]; memory n = b * H + h reads every H-th row of them. Shapes:
// G chunks, C tokens in a chunk (the first and the last may have fewer), K and V and hidden widths as layers have them,
// P parts a chunk starts from: M, what it decays to (if `targets`), momentum S (if `momentum`).

#include "native_gates.h"
#include "native_network.h"

extern "C" {

constexpr int MOST_LAYERS = 8;

// As `_Work` in native_chunks.py. Pointers are to float or double.
struct Work {
  int32_t B, T, H, C, G, phase, depth, threads, double_precision;
  int32_t activation, objective, norm, residual, denominator, targets, momentum, decays, read_before;
  int32_t sizes[MOST_LAYERS + 1];
  double huber_delta, norm_eps;
  double longest;                            // derivative with respect to a memory: longer ones are shortened
  const void *q, *k, *v, *step_size, *log_momentum, *log_decay;
  const uint8_t* valid;                      // [B, T], or null
  const int64_t *begins, *ends;              // [B]: where in a chunk a row begins, and the column after its last token
  const void* target[MOST_LAYERS];           // [H, D_in, D_out] each
  const void *found[MOST_LAYERS], *found_moving[MOST_LAYERS];  // [N, D_in, D_out]: weights, momentum before the first
  void *weights[MOST_LAYERS], *moving[MOST_LAYERS];       // as they are after each chunk
  void *anchor[MOST_LAYERS];                              // read and written
  void* y;                                   // [B, T, H, V]: the memory's answers to the queries
  void *loss, *gradient_norm;                // [B, T, H], or null

  // What a reading keeps for the way back, or null.
  void *start[MOST_LAYERS], *start_moving[MOST_LAYERS];   // [G, N, D_in, D_out]: weights, momentum before each chunk
  void *before[MOST_LAYERS];                              // [G, N, C, D_out]: what the layers gave for the keys
  void *sent[MOST_LAYERS];                                // [G, N, C, D_out]: errors before they met the non-linearity
  void *asked[MOST_LAYERS];                               // [G, N, C, D_out]: what layers gave for the queries; of the
                                                          // last one only where a norm follows it
  const void* first_anchor[MOST_LAYERS];                  // [N, D_in, D_out]: `anchor` as it was

  // The way back: derivatives of the outer loss. `weights`, `moving` and `anchor` then hold those with respect to what
  // the last chunk left, and are turned into those with respect to what the first one found.
  const void* to_y;                                       // [B, T, H, V]
  void *to_q, *to_k, *to_v, *to_step_size, *to_log_momentum, *to_log_decay;
  void* to_target[MOST_LAYERS];                           // [N, D_in, D_out], zero at first
};
}

namespace {

// What reading and its way back share: where things are.
template <typename T> class Place : protected Gates<T> {
 public:
  explicit Place(const Work& work)
      : Gates<T>(work.C, 1, work.decays, work.momentum, work.targets), w(work), L(work.depth),
        widest(*std::max_element(work.sizes, work.sizes + L + 1)), k(rows(w.sizes[0])), q(rows(w.sizes[0])),
        v(rows(w.sizes[L])), strip(2L * Vector<T>::width * std::max(widest, C)), network(work, w.sizes[L]) {}

 protected:
  using Gates<T>::C, Gates<T>::P, Gates<T>::c;

  const Work& w;
  const int L, widest;
  long b = 0, h = 0, n = 0, first = 0, index = 0;  // of the present chunk: its row, head, memory, column, place
  bool fresh = false;                              // whether it takes its gradients at the weights it finds
  array<T> k, q, v, strip;                   // [c, K], [c, K], [c, V]
  Ahead ahead;
  const Network<T> network;

  long rows(long width) const { return C * width; }
  long row(long t) const { return (b * w.T + first + t) * w.H + h; }
  int read_row() const { return w.read_before ? 0 : 1; }  // of the gates, for the first token's read

  long column(int g) const {  // the first of a chunk
    return g ? std::min<long>(w.T, g * static_cast<long>(C) - w.phase) : 0;
  }
  bool is_fresh(int g) const { return column(g) ? w.ends[b] > column(g) : w.begins[b] == 0; }

  void enter(int g, int memory) {
    n = memory, b = n / w.H, h = n % w.H, index = g * static_cast<long>(w.B) * w.H + n;
    first = column(g);
    fresh = is_fresh(g);
    this->unroll(static_cast<int>(column(g + 1) - first), at(w.step_size, row(0)), at(w.log_momentum, row(0)),
                 at(w.log_decay, row(0)), w.H, w.valid ? w.valid + b * w.T + first : nullptr);
    gather(w.k, w.sizes[0], k.data());
    gather(w.q, w.sizes[0], q.data());
    gather(w.v, w.sizes[L], v.data());
  }

  void gather(const void* tensor, int width, T* to) const {
    for (long t = 0; t < c; ++t) std::copy_n(at(tensor, row(t) * width), width, to + t * width);
  }
  void scatter(const T* from, int width, void* tensor) const {
    constexpr int W = Vector<T>::width;
    for (long t = 0; t < c; ++t) {
      T* to = at(tensor, row(t) * width);
      int j = 0;
      for (; j + W <= width; j += W) stream(to + j, load(from + t * width + j));
      std::copy(from + t * width + j, from + (t + 1) * width, to + j);
    }
  }

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  long numbers(int i) const { return static_cast<long>(w.sizes[i]) * w.sizes[i + 1]; }
  T* own(void* const* group, int i) const { return at(group[i], n * numbers(i)); }
  const T* target(int i) const { return at(w.target[i], h * numbers(i)); }
  T* kept(void* const* group, int i, int later = 0) const {  // of the present chunk, or of one so many later
    return at(group[i], (index + static_cast<long>(later) * w.B * w.H) * rows(w.sizes[i + 1]));
  }
  T* started(void* const* group, int i, int later = 0) const {
    return at(group[i], (index + static_cast<long>(later) * w.B * w.H) * numbers(i));
  }

  void want(const T* from, long count) { ahead.want(from, count * sizeof(T)); }
  void want_tokens(int g, const void* tensor, int width) {
    const T* from = at(tensor, ((b * w.T + column(g)) * w.H + h) * width);
    ahead.want(from, width * sizeof(T), column(g + 1) - column(g), w.H * width * sizeof(T));
  }

  // c (+)= a @ b, a @ b^T and a^T @ b, with a of `rows` rows, or for the last a and b of `rows` rows.
  void times(int rows, int inner, int columns, const T* a, const T* b, T* c, Scale<T> scale = {}) {
    scale.ahead = &ahead;
    product<T>(rows, columns, inner, a, inner, 1, b, columns, 1, c, columns, strip.data(), scale);
  }
  void times_transposed(int rows, int inner, int columns, const T* a, const T* b, T* c, Scale<T> scale = {}) {
    scale.ahead = &ahead;
    product<T>(rows, columns, inner, a, inner, 1, b, 1, inner, c, columns, strip.data(), scale);
  }
  void transposed_times(int rows, int left, int right, const T* a, const T* b, T* c, Scale<T> scale = {}) {
    scale.ahead = &ahead;
    product<T>(left, right, rows, a, 1, left, b, right, 1, c, right, strip.data(), scale);
  }

  // Rows [C, V] of what the last layer gave become normal; also the inverse of each row's deviation.
  void normalise(T* rows, T* inverse) const {
    for (long t = 0; t < c; ++t) inverse[t] = network.normalise(rows + t * w.sizes[L]);
  }

  // scores [c, c] = (z x^T) * G, zero for tokens to come.
  void mix_scores(T* scores) {
    for (long t = 0; t < c; ++t) {
      T *to = scores + t * c, *mix = this->shares_row(static_cast<int>(t) + read_row());
      for (int s = 0; s <= t; ++s) to[s] *= mix[s];
      std::fill(to + t + 1, to + c, T(0));
    }
  }
};

template <typename T> class Reader : Place<T> {
  using Base = Place<T>;
  using Base::w, Base::C, Base::L, Base::P, Base::c, Base::n, Base::k, Base::q, Base::v, Base::index, Base::fresh;
  using Base::at, Base::rows, Base::row, Base::numbers, Base::own, Base::kept, Base::started, Base::target, Base::widest;
  using Base::times, Base::times_transposed, Base::transposed_times, Base::network;

 public:
  explicit Reader(const Work& work) : Base(work), scores(rows(C)), inverse(C), read(rows(widest)), asked(rows(widest)) {
    for (int i = 0; i < L; ++i) {
      seen.emplace_back(i ? rows(w.sizes[i]) : 0);
      slopes.emplace_back(rows(w.sizes[i + 1]));
      errors.emplace_back(rows(w.sizes[i + 1]));
    }
  }

  void memory(int n) {
    for (int g = 0; g < w.G; ++g) {
      this->enter(g, n);
      for (int i = 0; i < L && !g; ++i) {
        if (w.start[i]) std::copy_n(weights(i), numbers(i), started(w.start, i));
        if (w.start_moving[i]) std::copy_n(moving(i), numbers(i), started(w.start_moving, i));
      }
      chunk(g);
    }
  }

 private:
  array<T> scores, inverse, read, asked;
  std::vector<array<T>> seen, slopes, errors;

  // Where what the next chunk begins with is kept, if it is.
  T* next(int g, void* const* group, int i) const { return group[i] && g + 1 < w.G ? started(group, i, 1) : nullptr; }
  // Where what was computed in this chunk is kept, if it is.
  Scale<T> keep(void* const* group, int i, Scale<T> scale = {}) const {
    scale.copy = group[i] ? kept(group, i) : nullptr;
    return scale;
  }

  void chunk(int g) {
    const long K = w.sizes[0], V = w.sizes[L];
    if (g + 1 < w.G) {
      this->want_tokens(g + 1, w.q, w.sizes[0]);
      this->want_tokens(g + 1, w.k, w.sizes[0]);
      this->want_tokens(g + 1, w.v, w.sizes[L]);
    }
    // What the weights make of the keys, and the errors sent back.
    const T* x = k.data();
    for (int i = 0; i < L; ++i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      T* a = errors[i].data();
      times(c, in, out, x, taken_at(i), a, keep(w.before, i));
      if (i + 1 < L) {
        x = seen[i + 1].data();
        network.activate(static_cast<long>(c) * out, a, seen[i + 1].data(), slopes[i].data(), nullptr);
      }
    }
    T* last = errors[L - 1].data();
    this->normalise(last, inverse.data());
    for (int t = 0; t < c; ++t) {
      T* to = last + t * V;
      if (w.loss) *at(w.loss, row(t)) = network.loss(to, k.data() + t * K, v.data() + t * V);
      network.error(to, k.data() + t * K, v.data() + t * V, asked.data());
      network.through_norm(to, inverse[t], asked.data(), to);
    }
    if (w.sent[L - 1]) std::copy_n(last, c * V, kept(w.sent, L - 1));
    for (int i = L - 1; i > 0; --i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      T* d = errors[i - 1].data();
      times_transposed(c, out, in, errors[i].data(), taken_at(i), d, keep(w.sent, i - 1));
      const T* slope = slopes[i - 1].data();
      for (long j = 0; j < static_cast<long>(c) * in; ++j) d[j] *= slope[j];
    }
    if (w.gradient_norm) norms();
    ask();
    if (fresh && (g + 1 == w.G || !this->is_fresh(g + 1)))
      for (int i = 0; i < L; ++i) std::copy_n(weights(i), numbers(i), own(w.anchor, i));
    write(g);
  }

  // The weights that this chunk takes its gradients at.
  const T* taken_at(int i) const { return fresh ? weights(i) : own(w.anchor, i); }

  // What this chunk finds: in the first one what was given, which stays as it is.
  const T* weights(int i) const { return begins() ? at(w.found[i], n * numbers(i)) : own(w.weights, i); }
  const T* moving(int i) const { return begins() ? at(w.found_moving[i], n * numbers(i)) : own(w.moving, i); }
  bool begins() const { return index < static_cast<long>(w.B) * w.H; }

  void norms() {
    for (int t = 0; t < c; ++t) {
      T squares = 0;
      for (int i = 0; i < L; ++i) {
        const int in = w.sizes[i], out = w.sizes[i + 1];
        const T *x = (i ? seen[i].data() : k.data()) + static_cast<long>(t) * in;
        const T *d = errors[i].data() + static_cast<long>(t) * out;
        squares += dot<T>(in, x, x) * dot<T>(out, d, d);
      }
      *at(w.gradient_norm, row(t)) = std::sqrt(squares);
    }
  }

  void ask() {
    const T* z = q.data();
    for (int i = 0; i < L; ++i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      const T *x = i ? seen[i].data() : k.data(), *d = errors[i].data();
      const T* part[3] = {weights(i)};
      int parts = 1;
      if (w.targets) part[parts++] = target(i);
      if (w.momentum) part[parts++] = moving(i);
      for (int p = 0; p < parts; ++p) {
        Scale<T> scale;
        scale.row = this->base_row(p, this->read_row()), scale.add = p > 0;
        times(c, in, out, z, part[p], read.data(), scale);
      }
      Scale<T> lower, minus;
      lower.wanted.last = 0;
      times_transposed(c, in, c, z, x, scores.data(), lower);
      this->mix_scores(scores.data());
      minus.sign = -1, minus.add = true, minus.filled.last = 0;
      times(c, c, out, scores.data(), d, read.data(), keep(w.asked, i, minus));
      if (i + 1 == L) return reply();
      network.activate(static_cast<long>(c) * out, read.data(), asked.data(), nullptr, nullptr);
      z = asked.data();
    }
  }

  // The answers, of what the last layer gave.
  void reply() {
    this->normalise(read.data(), inverse.data());
    if (w.residual)
      for (long j = 0; j < static_cast<long>(c) * w.sizes[L]; ++j) read[j] += q[j];
    this->scatter(read.data(), w.sizes[L], w.y);
  }

  void write(int g) {
    for (int i = 0; i < L; ++i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      const T *m = weights(i), *s = w.momentum ? moving(i) : nullptr;
      const T *x = i ? seen[i].data() : k.data(), *d = errors[i].data();
      Scale<T> scale;
      scale.sign = -1, scale.inner = this->shares_row(c), scale.copy = next(g, w.start, i);
      scale.plus(m, *this->base_row(0, c));
      if (w.targets) scale.plus(target(i), *this->base_row(1, c));
      if (s) scale.plus(s, *this->base_row(P - 1, c));
      transposed_times(c, in, out, x, d, own(w.weights, i), scale);
      if (!s) continue;
      Scale<T> writes;
      writes.sign = -1, writes.inner = this->writes_row(c), writes.copy = next(g, w.start_moving, i);
      writes.plus(s, this->left[c]);
      transposed_times(c, in, out, x, d, own(w.moving, i), writes);
    }
  }
};

// The way back, written out. With r_i what layer i gave for the queries, z_i what it read with, and a dash for the
// derivative of the outer loss:
//
//     r_i   = sum_p base_p (z_i P_p) - ((z_i x_i^T) * G) d_i
//     z_i'  = sum_p base_p (r_i' P_p^T) + ...    base_p' = z_i . (r_i' P_p^T)    P_p' = (base_p z_i)^T r_i'
//     M_C'  sends d_i M_C'^T to x_i and x_i M_C' to d_i, weighted by what is left of each write; S_C' likewise
//
// and the errors d_i = (d_{i+1} W^T) * act'(a_i) send back to a_i through the second derivative of the non-linearity.
template <typename T> class WayBack : Place<T> {
  using Base = Place<T>;
  using Base::w, Base::C, Base::L, Base::P, Base::c, Base::n, Base::k, Base::q, Base::v, Base::index, Base::fresh;
  using Base::at, Base::rows, Base::row, Base::numbers, Base::own, Base::kept, Base::started, Base::target, Base::widest;
  using Base::times, Base::times_transposed, Base::transposed_times, Base::network;

 public:
  explicit WayBack(const Work& work)
      : Base(work), scores(rows(C)), plain(rows(C)), inverse(C), to_k(rows(w.sizes[0])), to_v(rows(w.sizes[L])),
        to_y(rows(w.sizes[L])), normed(rows(w.sizes[L])) {
    for (auto* one : {&back, &to_z, &to_read}) one->resize(rows(widest));
    for (int i = 0; i < L; ++i) {
      for (auto* group : {&seen, &queries, &query_slopes, &to_seen}) group->emplace_back(rows(w.sizes[i]));
      for (auto* group : {&slopes, &curves, &errors, &to_error, &to_before})
        group->emplace_back(rows(w.sizes[i + 1]));
    }
  }

  void memory(int n) {
    for (int g = w.G - 1; g >= 0; --g) {
      this->enter(g, n);
      chunk(g);
    }
  }

 private:
  array<T> scores, plain, inverse, to_k, to_v, to_y, normed, back, to_z, to_read;
  std::vector<array<T>> seen, queries, query_slopes, to_seen, slopes, curves, errors, to_error, to_before;

  // The derivative of the weights that this chunk took its gradients at.
  T* to_taken_at(int i) const { return own(fresh ? w.weights : w.anchor, i); }

  const T* anchor(int g, int i) const {
    for (; g >= 0; --g)
      if (this->is_fresh(g)) return at(w.start[i], (g * static_cast<long>(w.B) * w.H + n) * numbers(i));
    return at(w.first_anchor[i], n * numbers(i));
  }

  void chunk(int g) {
    const int K = w.sizes[0], V = w.sizes[L];
    this->clear();
    for (int i = 0; i < L; ++i) {
      const long count = static_cast<long>(c) * w.sizes[i + 1];
      const T* sent = kept(w.sent, i);
      if (i + 1 == L) {
        std::copy_n(sent, count, errors[i].data());
        break;
      }
      network.activate(count, kept(w.before, i), seen[i + 1].data(), slopes[i].data(), curves[i].data());
      network.activate(count, kept(w.asked, i), queries[i + 1].data(), query_slopes[i + 1].data(), nullptr);
      T *error = errors[i].data(), *curve = curves[i].data();
      const T* slope = slopes[i].data();
      for (long j = 0; j < count; ++j) error[j] = sent[j] * slope[j], curve[j] *= sent[j];
    }
    answers();
    for (int i = L - 1; i >= 0; --i) {
      layer(g, i, i ? queries[i].data() : q.data(), i ? seen[i].data() : k.data());
      if (!i) break;
      T* to = to_read.data();
      const T *from = to_z.data(), *slope = query_slopes[i].data();
      for (long j = 0; j < static_cast<long>(c) * w.sizes[i]; ++j) to[j] = from[j] * slope[j];
    }
    if (w.residual)
      for (long j = 0; j < static_cast<long>(c) * K; ++j) to_z[j] += to_y[j];
    this->scatter(to_z.data(), K, w.to_q);
    if (fresh && (g + 1 == w.G || !this->is_fresh(g + 1)))  // for all others it is zero
      for (int i = 0; i < L; ++i) {
        T *m = own(w.weights, i), *a = own(w.anchor, i);
        for (long j = 0; j < numbers(i); ++j) m[j] += a[j], a[j] = 0;
      }
    inner_gradient(g);
    this->scatter(to_k.data(), K, w.to_k);
    this->scatter(to_v.data(), V, w.to_v);
    this->roll_back(at(w.to_step_size, row(0)), at(w.to_log_momentum, row(0)), at(w.to_log_decay, row(0)), w.H);
    for (int i = 0; i < L; ++i) {
      shorten(own(w.weights, i), numbers(i));
      if (w.momentum) shorten(own(w.moving, i), numbers(i));
    }
  }

  // From the derivatives of the answers to those of what the last layer gave.
  void answers() {
    const long V = w.sizes[L];
    this->gather(w.to_y, w.sizes[L], to_y.data());
    if (w.norm) {
      std::copy_n(kept(w.asked, L - 1), c * V, normed.data());
      this->normalise(normed.data(), inverse.data());
    }
    for (long t = 0; t < c; ++t)
      network.through_norm(normed.data() + t * V, inverse[t], to_y.data() + t * V, to_read.data() + t * V);
  }

  void shorten(T* adjoint, long count) const {
    const T norm = std::sqrt(dot(count, adjoint, adjoint));
    if (!(norm > T(w.longest))) return;
    const T scale = std::isinf(norm) ? T(0) : T(w.longest) / norm;
    for (long j = 0; j < count; ++j) adjoint[j] *= scale;
  }

  // Ask early for what a layer began this chunk with, or one `later`; and for what a chunk's way back begins with.
  void want_layer(int i, int later) {
    this->want(started(w.start, i, later), numbers(i));
    if (w.momentum) this->want(started(w.start_moving, i, later), numbers(i));
  }
  void want_chunk(int g) {
    this->want_tokens(g, w.q, w.sizes[0]);
    this->want_tokens(g, w.k, w.sizes[0]);
    this->want_tokens(g, w.v, w.sizes[L]);
    this->want_tokens(g, w.to_y, w.sizes[L]);
    for (int i = 0; i < L; ++i) {
      this->want(kept(w.before, i, -1), rows(w.sizes[i + 1]));
      this->want(kept(w.sent, i, -1), rows(w.sizes[i + 1]));
      if (w.asked[i]) this->want(kept(w.asked, i, -1), rows(w.sizes[i + 1]));
    }
    want_layer(L - 1, -1);
  }

  // What was read and written with one layer.
  void layer(int g, int i, const T* z, const T* x) {
    const int in = w.sizes[i], out = w.sizes[i + 1];
    const long count = numbers(i);
    const T* d = errors[i].data();
    T *to_x = to_seen[i].data(), *to_d = to_error[i].data();
    if (i) want_layer(i - 1, 0);
    else if (g) want_chunk(g - 1);
    const T* part[3] = {started(w.start, i)};
    int parts = 1;
    if (w.targets) part[parts++] = target(i);
    if (w.momentum) part[parts++] = started(w.start_moving, i);
    T *after = own(w.weights, i), *after_moving = w.momentum ? own(w.moving, i) : nullptr;

    // What was read of each part.
    for (int p = 0; p < parts; ++p) {
      times_transposed(c, out, in, to_read.data(), part[p], back.data());
      const T* base = this->base_row(p, this->read_row());
      T* to_base = this->to_base_row(p, this->read_row());
      for (long t = 0; t < c; ++t)
        to_base[t] += share_out(in, base[t], back.data() + t * in, z + t * in, to_z.data() + t * in, p > 0);
    }
    // What was written.
    for (int p = 0; p < parts; ++p) *this->to_base_row(p, c) += dot<T>(count, part[p], after);
    if (after_moving) this->to_left[c] += dot<T>(count, part[parts - 1], after_moving);
    for (int j = 0; j < 1 + w.momentum; ++j) {
      const T *grad = j ? after_moving : after, *share = j ? this->writes_row(c) : this->shares_row(c);
      T* to_share = j ? this->to_writes_row(c) : this->to_shares_row(c);
      times_transposed(c, out, in, d, grad, back.data());
      for (long t = 0; t < c; ++t)
        to_share[t] -= share_out(in, -share[t], back.data() + t * in, x + t * in, to_x + t * in, j > 0);
      Scale<T> scale;
      scale.row = share, scale.sign = -1, scale.add = j > 0;
      times(c, in, out, x, grad, to_d, scale);
    }
    // What was read of other tokens' writes.
    Scale<T> lower, minus, more;
    lower.wanted.last = 0;
    times_transposed(c, in, c, z, x, plain.data(), lower);
    times_transposed(c, out, c, to_read.data(), d, scores.data(), lower);
    for (long t = 0; t < c; ++t) {
      const int r = static_cast<int>(t) + this->read_row();
      const T* mix = this->shares_row(r);
      T *to_mix = this->to_shares_row(r), *score = scores.data() + t * c, *product = plain.data() + t * c;
      for (long s = 0; s <= t; ++s) {
        const T grad = score[s];
        to_mix[s] -= product[s] * grad;
        score[s] = -grad * mix[s];
        product[s] *= mix[s];
      }
      std::fill(score + t + 1, score + c, T(0));
      std::fill(product + t + 1, product + c, T(0));
    }
    minus.sign = -1, minus.add = true, minus.filled.first = 0;
    transposed_times(c, c, out, plain.data(), to_read.data(), to_d, minus);
    more.add = true, more.filled.first = 0;
    transposed_times(c, c, in, scores.data(), z, to_x, more);
    more.filled = {-Diagonals::FAR, 0};
    times(c, c, in, scores.data(), x, to_z.data(), more);

    // What is left of the derivatives of what the chunk left, and what was read of its start. The weights come last, for
    // the others take their part of the weights' derivative.
    const auto leave = [&](int p, T* to, T rest, T part_of_weights) {
      Scale<T> scale;
      scale.inner = this->base_row(p, this->read_row());
      scale.plus(to, rest);
      if (p) scale.plus(after, part_of_weights);
      transposed_times(c, in, out, z, to_read.data(), to, scale);
    };
    if (w.targets) leave(1, own(w.to_target, i), 1, *this->base_row(1, c));
    if (after_moving) leave(P - 1, after_moving, this->left[c], *this->base_row(P - 1, c));
    leave(0, after, *this->base_row(0, c), 0);
  }

  // to (+)= share * back; returns what back and the vector that it was asked with have in common.
  static T share_out(int count, T share, const T* back, const T* with, T* to, bool add) {
    if (add)
      for (int j = 0; j < count; ++j) to[j] += share * back[j];
    else
      for (int j = 0; j < count; ++j) to[j] = share * back[j];
    return dot<T>(count, back, with);
  }

  // What the gradient of the inner loss was taken with.
  void inner_gradient(int g) {
    const long K = w.sizes[0], V = w.sizes[L];
    std::fill(to_k.begin(), to_k.end(), T(0));
    Scale<T> more;
    more.add = true;
    for (int i = 0; i + 1 < L; ++i) {  // the errors, from the first layer to the last
      const int in = w.sizes[i + 1], out = w.sizes[i + 2];
      T *error = to_error[i].data(), *before = to_before[i].data();
      const T *slope = slopes[i].data(), *curve = curves[i].data();
      for (long j = 0; j < static_cast<long>(c) * in; ++j) before[j] = error[j] * curve[j], error[j] *= slope[j];
      times(c, in, out, error, anchor(g, i + 1), to_error[i + 1].data(), more);
      transposed_times(c, in, out, error, errors[i + 1].data(), to_taken_at(i + 1), more);
    }
    std::copy_n(kept(w.before, L - 1), c * V, normed.data());
    this->normalise(normed.data(), inverse.data());
    for (long t = 0; t < c; ++t)
      last_error(normed.data() + t * V, inverse[t], k.data() + t * K, v.data() + t * V, errors[L - 1].data() + t * V,
                 to_error[L - 1].data() + t * V, to_before[L - 1].data() + t * V, to_k.data() + t * K,
                 to_v.data() + t * V);
    for (int i = L - 1; i >= 0; --i) {  // what the layers made of the keys
      const int in = w.sizes[i], out = w.sizes[i + 1];
      const T* sent = to_before[i].data();
      transposed_times(c, in, out, i ? seen[i].data() : k.data(), sent, to_taken_at(i), more);
      T* to_x = to_seen[i].data();
      times_transposed(c, out, in, sent, anchor(g, i), to_x, more);
      for (long j = 0; j < static_cast<long>(c) * in; ++j)
        if (i) to_before[i - 1][j] += to_x[j] * slopes[i - 1][j];
        else to_k[j] += to_x[j];
    }
  }

  // One token: from the derivative with respect to the last layer's error to those of its output, the key and the value.
  void last_error(const T* normed, T inverse, const T* key, const T* value, const T* error, const T* grad, T* to_last,
                  T* to_key, T* to_value) {
    const int V = w.sizes[L];
    T *to_output_error = back.data(), *sent = to_z.data();
    network.through_norm(normed, inverse, grad, to_output_error);
    network.error(normed, key, value, sent);
    if (w.objective == HUBER)
      for (int j = 0; j < V; ++j) {
        const T off = normed[j] + (w.residual ? key[j] : 0) - value[j];
        if (!(std::abs(off) < T(w.huber_delta))) to_output_error[j] = 0;
      }
    const bool seen_by_loss = w.objective != DOT;
    for (int j = 0; j < V; ++j) {
      to_value[j] = -to_output_error[j];
      to_last[j] = seen_by_loss ? to_output_error[j] : 0;
      if (w.residual) to_key[j] = to_last[j];
    }
    if (!w.norm) return;
    const T straight = dot<T>(V, sent, normed) / V, along = dot<T>(V, grad, normed) / V;
    const T scaled = dot<T>(V, grad, error) / V;
    for (int j = 0; j < V; ++j) to_last[j] -= inverse * (grad[j] * straight + sent[j] * along);
    network.through_norm(normed, inverse, to_last, to_last);
    for (int j = 0; j < V; ++j) to_last[j] -= inverse * scaled * normed[j];
  }
};

}  // namespace

extern "C" {
void read_chunks(const Work* work) { run_in_its_precision<Reader>(*work, work->B * work->H); }
void go_back(const Work* work) { run_in_its_precision<WayBack>(*work, work->B * work->H); }
int size_of_work() { return sizeof(Work); }
}
