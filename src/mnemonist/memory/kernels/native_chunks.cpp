// Chunks read one after the other, one memory at a time: its weights, its momentum and a chunk's activations stay in
// the cache of one core, and the scalings by gates ride on the matrix products. The equations are those of chunked.py.
//
// Matrices are row-major. Shapes: G chunks, N memories, C tokens in a chunk, K and V and hidden widths as layers have
// them, P parts a chunk starts from: M, what it decays to (if `targets`), momentum S (if `momentum`).

#include "native_matrix.h"

namespace {

// --- non-linearities

enum Activation { SILU, GELU, RELU, TANH };
enum Objective { L2, DOT, HUBER };

template <typename T> inline void silu(const T* x, T* y, T* slope, T* curve) {
  const vec<T> v = load(x), gate = T(1) / (T(1) + exponential<T>(-v)), rest = T(1) - gate, out = v * gate;
  if (y) store(y, out);
  if (slope) store(slope, gate + out * rest);
  if (curve) store(curve, gate * rest * (T(2) + v * (rest - gate)));
}

template <typename T> inline void one(int kind, T x, T* y, T* slope, T* curve) {
  switch (kind) {
    case GELU: {
      const T cumulative = T(0.5) * std::erfc(-x * T(M_SQRT1_2));
      const T density = std::exp(T(-0.5) * x * x) * T(0.3989422804014327);
      if (y) *y = x * cumulative;
      if (slope) *slope = cumulative + x * density;
      if (curve) *curve = density * (2 - x * x);
      break;
    }
    case RELU:
      if (y) *y = x > 0 ? x : 0;
      if (slope) *slope = x > 0 ? 1 : 0;
      if (curve) *curve = 0;
      break;
    default: {
      const T t = std::tanh(x);
      if (y) *y = t;
      if (slope) *slope = 1 - t * t;
      if (curve) *curve = -2 * t * (1 - t * t);
    }
  }
}

// y, its first and its second derivative, all optional; y may be x.
template <typename T> void activate(int kind, long count, const T* x, T* y, T* slope, T* curve) {
  constexpr int W = Vector<T>::width;
  const auto from = [](T* p, long i) { return p ? p + i : nullptr; };
  if (kind != SILU) {
    for (long i = 0; i < count; ++i) one<T>(kind, x[i], from(y, i), from(slope, i), from(curve, i));
    return;
  }
  long i = 0;
  for (; i + W <= count; i += W) silu<T>(x + i, from(y, i), from(slope, i), from(curve, i));
  if (i < count) {
    T in[W] = {}, out[3][W];
    std::copy(x + i, x + count, in);
    silu<T>(in, out[0], out[1], out[2]);
    T* to[] = {y, slope, curve};
    for (int j = 0; j < 3; ++j)
      if (to[j]) std::copy(out[j], out[j] + (count - i), to[j] + i);
  }
}

}  // namespace

// --- what Python calls

extern "C" {

constexpr int MOST_LAYERS = 8;

// As `_Work` in chunk_kernel.py. Pointers are to float or double.
struct Work {
  int32_t G, N, C, depth, threads, double_precision;
  int32_t activation, objective, norm, residual, denominator, targets, momentum;
  int32_t sizes[MOST_LAYERS + 1];
  double huber_delta, norm_eps;
  const void *q, *k, *v;                     // [G, N, C, K], [G, N, C, K], [G, N, C, V]
  const void *base, *mix;                    // [G, N, C, P], [G, N, C, C]
  const void *base_last, *shares, *carry;    // [G, N, P], [G, N, 2, C], [G, N]
  const uint8_t* fresh;                      // [G, N]
  const void* target[MOST_LAYERS];           // [N, D_in, D_out] each, as are these, which are read and written:
  void *weights[MOST_LAYERS], *moving[MOST_LAYERS], *anchor[MOST_LAYERS];
  void* last;                                // [G, N, C, V]
  void *loss, *gradient_norm;                // [G, N, C], or null

  // What a reading keeps for the way back, or null.
  void *start[MOST_LAYERS], *start_moving[MOST_LAYERS];   // [G, N, D_in, D_out]: weights, momentum before each chunk
  void *before[MOST_LAYERS];                              // [G, N, C, D_out]: what the layers gave for the keys
  void *sent[MOST_LAYERS];                                // [G, N, C, D_out]: errors before they met the non-linearity
  void *asked[MOST_LAYERS];                               // [G, N, C, D_out]: what inner layers gave for the queries
  const void* first_anchor[MOST_LAYERS];                  // [N, D_in, D_out]: `anchor` as it was

  // The way back: derivatives of the outer loss. `weights`, `moving` and `anchor` then hold those with respect to what
  // the last chunk left, and are turned into those with respect to what the first one found.
  const void* to_last;                                    // [G, N, C, V]
  void *to_q, *to_k, *to_v, *to_base, *to_mix, *to_base_last, *to_shares, *to_carry;  // zero at first
  void* to_target[MOST_LAYERS];                           // [N, D_in, D_out], zero at first
  double longest;                                         // derivative with respect to a memory: longer ones are shortened
};
}

namespace {

// What reading and its way back share: where things are.
template <typename T> class Place {
 public:
  explicit Place(const Work& work)
      : w(work), C(work.C), L(work.depth), P(1 + work.targets + work.momentum),
        widest(*std::max_element(work.sizes, work.sizes + L + 1)), strip(2L * Vector<T>::width * std::max(widest, C)) {}

 protected:
  const Work& w;
  const int C, L, P, widest;
  std::vector<T> strip;

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  long numbers(int i) const { return static_cast<long>(w.sizes[i]) * w.sizes[i + 1]; }
  T* own(void* const* group, int i, long n) const { return at(group[i], n * numbers(i)); }
  T* kept(void* const* group, int i, long index) const { return at(group[i], index * C * w.sizes[i + 1]); }

  // c (+)= a @ b, a @ b^T and a^T @ b, with a of `rows` rows, or for the last a and b of `rows` rows.
  void times(int rows, int inner, int columns, const T* a, const T* b, T* c, const Scale<T>& scale = {}) {
    product<T>(rows, columns, inner, a, inner, 1, b, columns, 1, c, columns, strip.data(), scale);
  }
  void times_transposed(int rows, int inner, int columns, const T* a, const T* b, T* c, const Scale<T>& scale = {}) {
    product<T>(rows, columns, inner, a, inner, 1, b, 1, inner, c, columns, strip.data(), scale);
  }
  void transposed_times(int rows, int left, int right, const T* a, const T* b, T* c, const Scale<T>& scale = {}) {
    product<T>(left, right, rows, a, 1, left, b, right, 1, c, right, strip.data(), scale);
  }

  // Rows [C, V] of what the last layer gave become normal; returns the inverse of each row's deviation.
  void normalise(T* rows, T* inverse) const {
    const int V = w.sizes[L];
    for (int t = 0; t < C; ++t) {
      T* row = rows + static_cast<long>(t) * V;
      inverse[t] = 1;
      if (!w.norm) continue;
      T mean = 0, square = 0;
      for (int j = 0; j < V; ++j) mean += row[j];
      mean /= V;
      for (int j = 0; j < V; ++j) square += (row[j] - mean) * (row[j] - mean);
      inverse[t] = 1 / std::sqrt(square / V + T(w.norm_eps));
      for (int j = 0; j < V; ++j) row[j] = (row[j] - mean) * inverse[t];
    }
  }

  // The derivative of the normalisation, which is its own transpose; `to` may be `error`.
  void through_norm(const T* normed, T inverse, const T* error, T* to) const {
    const int V = w.sizes[L];
    T mean = 0, along = 0;
    for (int j = 0; j < V; ++j) mean += error[j], along += error[j] * normed[j];
    mean /= V, along /= V;
    for (int j = 0; j < V; ++j) to[j] = w.norm ? inverse * (error[j] - mean - normed[j] * along) : error[j];
  }

  // Derivative of the inner loss with respect to the answer; returns the loss.
  T output_error(const T* normed, const T* key, const T* value, T* error) const {
    const int V = w.sizes[L];
    const T delta = T(w.huber_delta);
    T loss = 0;
    for (int j = 0; j < V; ++j) {
      const T output = normed[j] + (w.residual ? key[j] : 0), off = output - value[j], far = std::abs(off);
      const bool counts = !(w.denominator && j + 1 == V);
      switch (w.objective) {
        case L2: error[j] = off; loss += counts ? T(0.5) * off * off : 0; break;
        case DOT: error[j] = -value[j]; loss -= counts ? output * value[j] : 0; break;
        default:
          error[j] = std::min(std::max(off, -delta), delta);
          loss += !counts ? 0 : far <= delta ? T(0.5) * off * off : delta * (far - T(0.5) * delta);
      }
    }
    return loss;
  }

  // scores [C, C] = (z x^T) * mix, zero for tokens to come.
  void mix_scores(T* scores, const T* mix) const {
    for (long t = 0; t < C; ++t) {
      T* row = scores + t * C;
      for (int s = 0; s <= t; ++s) row[s] *= mix[t * C + s];
      std::fill(row + t + 1, row + C, T(0));
    }
  }
};

template <typename T> class Reader : Place<T> {
  using Base = Place<T>;
  using Base::w, Base::C, Base::L, Base::P, Base::at, Base::numbers, Base::own, Base::kept, Base::widest;
  using Base::times, Base::times_transposed, Base::transposed_times;

 public:
  explicit Reader(const Work& work) : Base(work), scores(static_cast<long>(C) * C), inverse(C) {
    const long row = static_cast<long>(C) * widest;
    read.resize(row);
    asked.resize(row);
    for (int i = 0; i < L; ++i) {
      seen.emplace_back(i ? static_cast<long>(C) * w.sizes[i] : 0);
      slopes.emplace_back(static_cast<long>(C) * w.sizes[i + 1]);
      errors.emplace_back(static_cast<long>(C) * w.sizes[i + 1]);
    }
  }

  void memory(int n) {
    for (int g = 0; g < w.G; ++g) chunk(g, n);
  }

 private:
  std::vector<T> scores, inverse, read, asked;
  std::vector<std::vector<T>> seen, slopes, errors;

  void keep(void* const* group, int i, long index, const T* rows) const {
    if (group[i]) std::copy(rows, rows + static_cast<long>(C) * w.sizes[i + 1], kept(group, i, index));
  }

  void chunk(int g, int n) {
    const long index = static_cast<long>(g) * w.N + n, K = w.sizes[0], V = w.sizes[L];
    const bool fresh = w.fresh[index];
    const T* k = at(w.k, index * C * K);
    const T* v = at(w.v, index * C * V);
    for (int i = 0; i < L; ++i) {
      if (w.start[i]) std::copy_n(own(w.weights, i, n), numbers(i), own(w.start, i, index));
      if (w.start_moving[i]) std::copy_n(own(w.moving, i, n), numbers(i), own(w.start_moving, i, index));
    }
    // What the weights make of the keys, and the errors sent back.
    const T* x = k;
    for (int i = 0; i < L; ++i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      T* a = errors[i].data();
      times(C, in, out, x, own(fresh ? w.weights : w.anchor, i, n), a);
      keep(w.before, i, index, a);
      if (i + 1 < L) {
        x = seen[i + 1].data();
        activate<T>(w.activation, static_cast<long>(C) * out, a, seen[i + 1].data(), slopes[i].data(), nullptr);
      }
    }
    this->normalise(errors[L - 1].data(), inverse.data());
    for (int t = 0; t < C; ++t) {
      T* row = errors[L - 1].data() + t * V;
      const T loss = this->output_error(row, k + t * K, v + t * V, asked.data());
      this->through_norm(row, inverse[t], asked.data(), row);
      if (w.loss) at(w.loss, index * C)[t] = loss;
    }
    keep(w.sent, L - 1, index, errors[L - 1].data());
    for (int i = L - 1; i > 0; --i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      T* d = errors[i - 1].data();
      times_transposed(C, out, in, errors[i].data(), own(fresh ? w.weights : w.anchor, i, n), d);
      keep(w.sent, i - 1, index, d);
      const T* slope = slopes[i - 1].data();
      for (long j = 0; j < static_cast<long>(C) * in; ++j) d[j] *= slope[j];
    }
    if (w.gradient_norm) norms(index, k);
    ask(index, n, k);
    if (fresh && (g + 1 == w.G || !w.fresh[index + w.N]))
      for (int i = 0; i < L; ++i) std::copy_n(own(w.weights, i, n), numbers(i), own(w.anchor, i, n));
    write(index, n, k);
  }

  void norms(long index, const T* k) {
    for (int t = 0; t < C; ++t) {
      T sum = 0;
      for (int i = 0; i < L; ++i) {
        const int in = w.sizes[i], out = w.sizes[i + 1];
        const T* x = (i ? seen[i].data() : k) + static_cast<long>(t) * in;
        const T* d = errors[i].data() + static_cast<long>(t) * out;
        T a = 0, b = 0;
        for (int j = 0; j < in; ++j) a += x[j] * x[j];
        for (int j = 0; j < out; ++j) b += d[j] * d[j];
        sum += a * b;
      }
      static_cast<T*>(w.gradient_norm)[index * C + t] = std::sqrt(sum);
    }
  }

  void ask(long index, int n, const T* k) {
    const T *base = at(w.base, index * C * P), *mix = at(w.mix, index * C * C);
    const T* z = at(w.q, index * C * w.sizes[0]);
    for (int i = 0; i < L; ++i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      const T *x = i ? seen[i].data() : k, *d = errors[i].data();
      T* to = i + 1 < L ? read.data() : static_cast<T*>(w.last) + index * C * out;
      const T* part[3] = {own(w.weights, i, n)};
      int parts = 1;
      if (w.targets) part[parts++] = at(w.target[i], n * numbers(i));
      if (w.momentum) part[parts++] = own(w.moving, i, n);
      for (int p = 0; p < parts; ++p) {
        Scale<T> scale;
        scale.row = base + p, scale.row_stride = P, scale.add = p > 0;
        times(C, in, out, z, part[p], to, scale);
      }
      Scale<T> lower, minus;
      lower.lower = true;
      times_transposed(C, in, C, z, x, scores.data(), lower);
      this->mix_scores(scores.data(), mix);
      minus.sign = -1, minus.add = minus.causal = true;
      times(C, C, out, scores.data(), d, to, minus);
      if (i + 1 < L) {
        keep(w.asked, i, index, to);
        activate<T>(w.activation, static_cast<long>(C) * out, to, asked.data(), nullptr, nullptr);
        z = asked.data();
      }
    }
  }

  void write(long index, int n, const T* k) {
    const T *left = at(w.base_last, index * P), *shares = at(w.shares, index * (1 + w.momentum) * C);
    for (int i = 0; i < L; ++i) {
      const int in = w.sizes[i], out = w.sizes[i + 1];
      const long count = numbers(i);
      T *m = own(w.weights, i, n), *s = w.momentum ? own(w.moving, i, n) : nullptr;
      const T* target = w.targets ? at(w.target[i], n * count) : nullptr;
      const T keep = left[0], pull = w.targets ? left[1] : 0, push = left[P - 1], carry = s ? *at(w.carry, index) : 0;
      if (s && target)
        for (long j = 0; j < count; ++j) m[j] = keep * m[j] + pull * target[j] + push * s[j], s[j] *= carry;
      else if (s)
        for (long j = 0; j < count; ++j) m[j] = keep * m[j] + push * s[j], s[j] *= carry;
      else if (target)
        for (long j = 0; j < count; ++j) m[j] = keep * m[j] + pull * target[j];
      else
        for (long j = 0; j < count; ++j) m[j] *= keep;
      const T *x = i ? seen[i].data() : k, *d = errors[i].data();
      Scale<T> scale;
      scale.sign = -1, scale.add = true, scale.inner = shares;
      transposed_times(C, in, out, x, d, m, scale);
      scale.inner = shares + C;
      if (s) transposed_times(C, in, out, x, d, s, scale);
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
  using Base::w, Base::C, Base::L, Base::P, Base::at, Base::numbers, Base::own, Base::kept, Base::widest;
  using Base::times, Base::times_transposed, Base::transposed_times;

 public:
  explicit WayBack(const Work& work) : Base(work), scores(square()), plain(square()), inverse(C) {
    const long row = static_cast<long>(C) * widest;
    for (auto* one : {&back, &to_z, &to_read, &rows}) one->resize(row);
    for (int i = 0; i < L; ++i) {
      for (auto* group : {&seen, &queries, &to_seen}) group->emplace_back(static_cast<long>(C) * w.sizes[i]);
      for (auto* group : {&slopes, &curves, &errors, &to_error, &to_before})
        group->emplace_back(static_cast<long>(C) * w.sizes[i + 1]);
    }
  }

  void memory(int n) {
    for (int g = w.G - 1; g >= 0; --g) chunk(g, n);
  }

 private:
  std::vector<T> scores, plain, inverse, back, to_z, to_read, rows;
  std::vector<std::vector<T>> seen, queries, to_seen, slopes, curves, errors, to_error, to_before;

  long square() const { return static_cast<long>(C) * C; }

  const T* anchor(int g, int i, long n) const {
    for (; g >= 0; --g)
      if (w.fresh[static_cast<long>(g) * w.N + n]) return own(w.start, i, static_cast<long>(g) * w.N + n);
    return at(w.first_anchor[i], n * numbers(i));
  }

  void chunk(int g, int n) {
    const long index = static_cast<long>(g) * w.N + n, K = w.sizes[0], V = w.sizes[L];
    const T *k = at(w.k, index * C * K), *q = at(w.q, index * C * K);
    for (int i = 0; i < L; ++i) {
      const long count = static_cast<long>(C) * w.sizes[i + 1];
      const T* sent = kept(w.sent, i, index);
      if (i + 1 == L) {
        std::copy_n(sent, count, errors[i].data());
        break;
      }
      activate<T>(w.activation, count, kept(w.before, i, index), seen[i + 1].data(), slopes[i].data(), curves[i].data());
      activate<T>(w.activation, count, kept(w.asked, i, index), queries[i + 1].data(), nullptr, nullptr);
      for (long j = 0; j < count; ++j) errors[i][j] = sent[j] * slopes[i][j];
    }
    std::copy_n(at(w.to_last, index * C * V), C * V, to_read.data());
    for (int i = L - 1; i >= 0; --i) {
      layer(i, index, n, i ? queries[i].data() : q, i ? seen[i].data() : k);
      if (!i) break;
      const long count = static_cast<long>(C) * w.sizes[i];
      activate<T>(w.activation, count, kept(w.asked, i - 1, index), nullptr, rows.data(), nullptr);
      for (long j = 0; j < count; ++j) to_read[j] = to_z[j] * rows[j];
    }
    std::copy_n(to_z.data(), C * K, at(w.to_q, index * C * K));
    inner_gradient(g, index, n, k);
    for (int i = 0; i < L; ++i) {
      if (w.fresh[index]) {
        T *m = own(w.weights, i, n), *a = own(w.anchor, i, n);
        for (long j = 0; j < numbers(i); ++j) m[j] += a[j], a[j] = 0;
      }
      shorten(own(w.weights, i, n), numbers(i));
      if (w.momentum) shorten(own(w.moving, i, n), numbers(i));
    }
  }

  void shorten(T* adjoint, long count) const {
    const T norm = std::sqrt(dot(count, adjoint, adjoint));
    if (!(norm > T(w.longest))) return;
    const T scale = std::isinf(norm) ? T(0) : T(w.longest) / norm;
    for (long j = 0; j < count; ++j) adjoint[j] *= scale;
  }

  // What was read and written with one layer.
  void layer(int i, long index, long n, const T* z, const T* x) {
    const int in = w.sizes[i], out = w.sizes[i + 1];
    const long count = numbers(i);
    const T *base = at(w.base, index * C * P), *mix = at(w.mix, index * C * C), *left = at(w.base_last, index * P);
    const T *shares = at(w.shares, index * (1 + w.momentum) * C), *d = errors[i].data();
    T *to_base = at(w.to_base, index * C * P), *to_mix = at(w.to_mix, index * C * C);
    T *to_left = at(w.to_base_last, index * P), *to_shares = at(w.to_shares, index * (1 + w.momentum) * C);
    T *to_x = to_seen[i].data(), *to_d = to_error[i].data();
    const T* part[3] = {own(w.start, i, index)};
    int parts = 1;
    if (w.targets) part[parts++] = at(w.target[i], n * count);
    if (w.momentum) part[parts++] = own(w.start_moving, i, index);
    T *after = own(w.weights, i, n), *after_moving = w.momentum ? own(w.moving, i, n) : nullptr;

    // What was read of each part.
    std::fill_n(to_z.data(), static_cast<long>(C) * in, T(0));
    for (int p = 0; p < parts; ++p) {
      times_transposed(C, out, in, to_read.data(), part[p], back.data());
      for (long t = 0; t < C; ++t) {
        const T weight = base[t * P + p];
        to_base[t * P + p] += dot(in, back.data() + t * in, z + t * in);
        for (int j = 0; j < in; ++j) to_z[t * in + j] += weight * back[t * in + j];
      }
    }
    // What was written.
    for (int p = 0; p < parts; ++p) to_left[p] += dot(count, part[p], after);
    if (after_moving) *at(w.to_carry, index) += dot(count, part[parts - 1], after_moving);
    std::fill_n(to_x, static_cast<long>(C) * in, T(0));
    for (int j = 0; j < 1 + w.momentum; ++j) {
      const T *grad = j ? after_moving : after, *share = shares + j * C;
      times_transposed(C, out, in, d, grad, back.data());
      for (long t = 0; t < C; ++t) {
        to_shares[j * C + t] -= dot(in, back.data() + t * in, x + t * in);
        for (int c = 0; c < in; ++c) to_x[t * in + c] -= share[t] * back[t * in + c];
      }
      Scale<T> scale;
      scale.row = share, scale.sign = -1, scale.add = j > 0;
      times(C, in, out, x, grad, to_d, scale);
    }
    // What was read of other tokens' writes.
    Scale<T> lower, minus, more;
    lower.lower = true;
    minus.sign = -1, minus.add = true;
    more.add = true;
    times_transposed(C, in, C, z, x, plain.data(), lower);
    times_transposed(C, out, C, to_read.data(), d, scores.data(), lower);
    for (long t = 0; t < C; ++t)
      for (long s = 0; s < C; ++s) {
        const long j = t * C + s;
        if (s > t) {
          scores[j] = plain[j] = 0;
          continue;
        }
        const T sent = scores[j];
        to_mix[j] -= plain[j] * sent;
        scores[j] = -sent * mix[j];
        plain[j] *= mix[j];
      }
    minus.anticausal = more.anticausal = true;
    transposed_times(C, C, out, plain.data(), to_read.data(), to_d, minus);
    transposed_times(C, C, in, scores.data(), z, to_x, more);
    more.causal = true, more.anticausal = false;
    times(C, C, in, scores.data(), x, to_z.data(), more);

    // What is left of the derivatives of what the chunk left, and what was read of its start.
    T* to_target = w.targets ? at(w.to_target[i], n * count) : nullptr;
    const T keep = left[0], pull = w.targets ? left[1] : 0, push = left[P - 1];
    const T carry = after_moving ? *at(w.carry, index) : 0;
    for (long j = 0; j < count; ++j) {
      const T grad = after[j];
      if (to_target) to_target[j] += pull * grad;
      if (after_moving) after_moving[j] = carry * after_moving[j] + push * grad;
      after[j] = keep * grad;
    }
    T* to_part[3] = {after};
    parts = 1;
    if (w.targets) to_part[parts++] = to_target;
    if (w.momentum) to_part[parts++] = after_moving;
    for (int p = 0; p < parts; ++p) {
      Scale<T> scale;
      scale.inner = base + p, scale.inner_stride = P, scale.add = true;
      transposed_times(C, in, out, z, to_read.data(), to_part[p], scale);
    }
  }

  // What the gradient of the inner loss was taken with.
  void inner_gradient(int g, long index, long n, const T* k) {
    const long K = w.sizes[0], V = w.sizes[L];
    const T* v = at(w.v, index * C * V);
    T *to_k = at(w.to_k, index * C * K), *to_v = at(w.to_v, index * C * V);
    Scale<T> more;
    more.add = true;
    for (int i = 0; i + 1 < L; ++i) {  // the errors, from the first layer to the last
      const int in = w.sizes[i + 1], out = w.sizes[i + 2];
      const T* sent = kept(w.sent, i, index);
      T* error = to_error[i].data();
      for (long j = 0; j < static_cast<long>(C) * in; ++j) {
        to_before[i][j] = sent[j] * error[j] * curves[i][j];
        error[j] *= slopes[i][j];
      }
      times(C, in, out, error, anchor(g, i + 1, n), to_error[i + 1].data(), more);
      transposed_times(C, in, out, error, errors[i + 1].data(), own(w.anchor, i + 1, n), more);
    }
    T* normed = rows.data();
    std::copy_n(kept(w.before, L - 1, index), C * V, normed);
    this->normalise(normed, inverse.data());
    for (long t = 0; t < C; ++t)
      last_error(normed + t * V, inverse[t], k + t * K, v + t * V, errors[L - 1].data() + t * V,
                 to_error[L - 1].data() + t * V, to_before[L - 1].data() + t * V, to_k + t * K, to_v + t * V);
    for (int i = L - 1; i >= 0; --i) {  // what the layers made of the keys
      const int in = w.sizes[i], out = w.sizes[i + 1];
      const T* sent = to_before[i].data();
      transposed_times(C, in, out, i ? seen[i].data() : k, sent, own(w.anchor, i, n), more);
      T* to_x = to_seen[i].data();
      times_transposed(C, out, in, sent, anchor(g, i, n), to_x, more);
      for (long j = 0; j < static_cast<long>(C) * in; ++j)
        if (i) to_before[i - 1][j] += to_x[j] * slopes[i - 1][j];
        else to_k[j] += to_x[j];
    }
  }

  // One token: from the derivative with respect to the last layer's error to those of its output, the key and the value.
  void last_error(const T* normed, T inverse, const T* key, const T* value, const T* error, const T* grad, T* to_last,
                  T* to_key, T* to_value) {
    const int V = w.sizes[L];
    T *to_output_error = back.data(), *sent = to_z.data();
    this->through_norm(normed, inverse, grad, to_output_error);
    this->output_error(normed, key, value, sent);
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
    T straight = 0, along = 0, scaled = 0;
    for (int j = 0; j < V; ++j) {
      straight += sent[j] * normed[j];
      along += grad[j] * normed[j];
      scaled += grad[j] * error[j];
    }
    straight /= V, along /= V, scaled /= V;
    for (int j = 0; j < V; ++j) to_last[j] -= inverse * (grad[j] * straight + sent[j] * along);
    this->through_norm(normed, inverse, to_last, to_last);
    for (int j = 0; j < V; ++j) to_last[j] -= inverse * scaled * normed[j];
  }
};

}  // namespace

extern "C" {
void read_chunks(const Work* work) {
  work->double_precision ? run_all<Reader<double>>(*work, work->N, work->threads) : run_all<Reader<float>>(*work, work->N, work->threads);
}
void go_back(const Work* work) {
  work->double_precision ? run_all<WayBack<double>>(*work, work->N, work->threads) : run_all<WayBack<float>>(*work, work->N, work->threads);
}
int size_of_work() { return sizeof(Work); }
}
