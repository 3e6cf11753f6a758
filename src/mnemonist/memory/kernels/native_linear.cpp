// Linear memories, exact at every token: the equations of exact.py, one memory at a time, block of tokens by block.
//
// Each error depends on the writes before it, linearly: the errors of a block solve a triangular system. What is left of
// every write at every token is in native_gates.h.
//
// Tensors of tokens are [B, T, H, ...]; a memory n = b * H + h reads every H-th row of them. Shapes: C tokens of a block,
// K and V the widths of keys and values, R rates of decay (1 or K), P parts a block starts from (M, target, S).

#include "native_gates.h"

extern "C" {

// As `_Work` in native_linear.py. Pointers are to float or double.
struct Work {
  int32_t B, T, H, K, V, C, threads, double_precision;
  int32_t solves, momentum, rates, decays, targets, decayed, read_before, denominator;
  const void *q, *k, *v, *step_size, *log_momentum, *log_decay;
  const uint8_t* valid;                      // [B, T], or null
  const void* target;                        // [H, K, V], or null
  void *weights, *moving;                    // [N, K, V], read and written; moving null without momentum
  void *y, *loss, *gradient_norm;            // the latter two may be null
  void *start, *start_moving;                // [G, N, K, V]: weights and momentum before each block, or null
  void* errors;                              // [B, T, H, V], or null

  // The way back: `weights` and `moving` hold derivatives with respect to what the last block left, and are turned into
  // those with respect to what the first one found.
  const void* to_y;
  void *to_q, *to_k, *to_v, *to_step_size, *to_log_momentum, *to_log_decay;
  void* to_target;                           // [N, K, V], zero at first
};
}

namespace {

// One block of a memory: its rows, what its gates amount to, and the scores of its tokens.
template <typename T> class Block : protected Gates<T> {
 public:
  explicit Block(const Work& work)
      : Gates<T>(work.C, work.rates, work.decays, work.momentum, work.targets), w(work), K(w.K), V(w.V), stride(w.H),
        strip(2L * Vector<T>::width * std::max({C, K, V})), met(P * rows(R)), keys(rows(C)), queries(rows(C)),
        L(rows(C)), A(rows(C)), wide(rows(K)), last(rows(K)) {}

 protected:
  using Base = Gates<T>;
  using Base::C, Base::R, Base::P, Base::c, Base::decay, Base::pull, Base::real;
  using Base::base_row, Base::writes_row, Base::shares_row;

  const Work& w;
  const int K, V;
  const long stride;  // rows of other heads stand between those of one memory
  long b = 0, h = 0, n = 0, first = 0;
  array<T> strip, met, keys, queries, L, A, wide, last;

  long rows(long width) const { return C * width; }
  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  template <typename P> auto row(P* p, long t, long width) const {
    return at(p, ((b * w.T + first + t) * w.H + h) * width);
  }
  template <typename P> auto own(P* p) const { return at(p, n * K * V); }
  template <typename P> auto kept(P* p) const {
    return at(p, ((first / C) * static_cast<long>(w.B) * w.H + n) * K * V);
  }

  int read_row(int t) const { return w.read_before ? t : t + 1; }

  // c (+)= a @ b for rows of one memory (`far`) or of a block's own (`near`).
  void times(int rows, int inner, int columns, const T* a, long ars, long acs, const T* b, long brs, long bcs, T* c,
             long ldc, const Scale<T>& scale = {}) {
    product<T>(rows, columns, inner, a, ars, acs, b, brs, bcs, c, ldc, strip.data(), scale);
  }

  void enter(long memory, long token) {
    n = memory, b = n / w.H, h = n % w.H, first = token;
    const uint8_t* valid = w.valid ? w.valid + b * w.T + first : nullptr;
    this->unroll(static_cast<int>(std::min<long>(C, w.T - first)), row(w.step_size, 0, 1), row(w.log_momentum, 0, 1),
                 row(w.log_decay, 0, R), stride, valid);
    for (int p = 0; p < P; ++p)
      for (int t = 0; t < c; ++t)
        for (int j = 0; j < R; ++j) {
          T& value = met[(p * C + t) * R + j] = base_row(p, t)[j];
          if (!w.decayed) continue;
          value *= decay[t * R + j];
          if (w.targets && p == 1) value += pull[t * R + j];
        }
    scores();
  }

  bool meets() const { return w.solves || w.loss; }

  // L[t, s]: how much of the error at s token t meets; A[t, s]: how much of it t's query is answered with.
  void scores() {
    if (R > 1) return scores_by_channel();
    const T *k = row(w.k, 0, K), *q = row(w.q, 0, K);
    Scale<T> lower;
    lower.wanted.last = 0;
    if (meets()) times(c, K, c, k, stride * K, 1, k, 1, stride * K, keys.data(), C, lower);
    times(c, K, c, q, stride * K, 1, k, 1, stride * K, queries.data(), C, lower);
    for (int t = 0; t < c; ++t) {
      const T factor = w.decayed ? decay[t] : T(1), *held = shares_row(t), *read = shares_row(read_row(t));
      T *meet = L.data() + t * C, *ask = A.data() + t * C;
      if (meets())
        for (int s = 0; s < t; ++s) meet[s] = keys[t * C + s] * held[s] * factor;
      for (int s = 0; s <= t; ++s) ask[s] = queries[t * C + s] * read[s];
      if (meets()) std::fill(meet + t, meet + C, T(0));
      std::fill(ask + t + 1, ask + C, T(0));
    }
  }

  // With a rate per channel: the writes of each token followed through the block; `last` is what is left at its end.
  void scores_by_channel() {
    std::fill_n(L.data(), rows(C), T(0));
    std::fill_n(A.data(), rows(C), T(0));
    for (int s = 0; s < c; ++s) {
      const T* key = row(w.k, s, K);
      T* held = last.data() + s * K;
      for (int t = s; t < c; ++t) {
        const T *q = row(w.q, t, K), *k = row(w.k, t, K), *a = decay.data() + t * K;
        const T more = real[t] * writes_row(t + 1)[s];
        if (t == s) {
          for (int j = 0; j < K; ++j) held[j] = more * key[j];
        } else {
          if (w.read_before) A[t * C + s] = dot<T>(K, q, held);
          if (meets() && !w.decayed) L[t * C + s] = dot<T>(K, k, held);
          for (int j = 0; j < K; ++j) held[j] *= a[j];
          if (meets() && w.decayed) L[t * C + s] = dot<T>(K, k, held);
          if (w.momentum)
            for (int j = 0; j < K; ++j) held[j] += more * key[j];
        }
        if (!w.read_before) A[t * C + s] = dot<T>(K, q, held);
      }
    }
  }

  // Rows of `x` as part p sees them: the weights of a part are numbers per row, or vectors, which scale the rows here.
  const T* seen_by_part(const T* x, int p, bool meeting, Scale<T>& scale, long& apart) {
    if (R == 1) {
      scale.row = meeting ? met.data() + p * C : base_row(p, read_row(0));
      apart = stride * K;
      return x;
    }
    for (int t = 0; t < c; ++t) {
      const T* weight = meeting ? met.data() + (p * C + t) * R : base_row(p, read_row(t));
      for (int j = 0; j < K; ++j) wide[t * K + j] = weight[j] * x[t * stride * K + j];
    }
    apart = K;
    return wide.data();
  }

  const T* part(int p, const T* weights, const T* moving) const {
    if (p == 0) return weights;
    return w.targets && p == 1 ? at(w.target, h * K * V) : moving;
  }
};

template <typename T> class Reader : Block<T> {
  using Base = Block<T>;
  using Base::w, Base::C, Base::K, Base::V, Base::R, Base::P, Base::b, Base::h, Base::n, Base::c, Base::stride;
  using Base::at, Base::row, Base::own, Base::times;

 public:
  explicit Reader(const Work& work) : Base(work), error(this->rows(V)), answer(this->rows(V)) {}

  void memory(int index) {
    for (long t = 0; t < w.T; t += C) {
      this->enter(index, t);
      block();
    }
  }

 private:
  array<T> error, answer;

  void block() {
    T *m = own(w.weights), *s = w.momentum ? own(w.moving) : nullptr;
    if (w.start) std::copy_n(m, static_cast<long>(K) * V, this->kept(w.start));
    if (w.start && s) std::copy_n(s, static_cast<long>(K) * V, this->kept(w.start_moving));
    if (this->meets()) read_start(true, row(w.k, 0, K), answer.data(), V);
    for (int t = 0; t < c; ++t) {
      const T* v = row(w.v, t, V);
      for (int j = 0; j < V; ++j) error[t * V + j] = (w.solves ? answer[t * V + j] : T(0)) - v[j];
    }
    if (w.solves) solve();
    if (w.errors)
      for (int t = 0; t < c; ++t) std::copy_n(error.data() + t * V, V, row(w.errors, t, V));
    if (w.loss) trace();
    T* y = row(w.y, 0, V);
    read_start(false, row(w.q, 0, K), y, stride * V);
    Scale<T> minus;
    minus.sign = -1, minus.add = true, minus.filled.last = 0;
    times(c, c, V, this->A.data(), C, 1, error.data(), V, 1, y, stride * V, minus);
    write(m, s);
  }

  void read_start(bool meeting, const T* x, T* to, long apart) {
    const T *m = own(w.weights), *s = w.momentum ? own(w.moving) : nullptr;
    for (int p = 0; p < P; ++p) {
      Scale<T> scale;
      long between;
      scale.add = p > 0;
      const T* z = this->seen_by_part(x, p, meeting, scale, between);
      times(c, K, V, z, between, 1, this->part(p, m, s), V, 1, to, apart, scale);
    }
  }

  // Each token's error needs those before it.
  void solve() {
    for (int t = 0; t < c; t += ROWS) {
      const int count = std::min(ROWS, c - t);
      const T* meet = this->L.data() + t * C;
      Scale<T> minus;
      minus.sign = -1, minus.add = true;
      if (t) times(count, t, V, meet, C, 1, error.data(), V, 1, error.data() + t * V, V, minus);
      for (int i = 1; i < count; ++i)
        for (int s = 0; s < i; ++s) {
          const T weight = meet[i * C + t + s], *from = error.data() + (t + s) * V;
          T* to = error.data() + (t + i) * V;
          for (int j = 0; j < V; ++j) to[j] -= weight * from[j];
        }
    }
  }

  void trace() {
    if (!w.solves) {
      Scale<T> minus;
      minus.sign = -1, minus.add = true, minus.filled.last = 0;
      times(c, c, V, this->L.data(), C, 1, error.data(), V, 1, answer.data(), V, minus);
    }
    for (int t = 0; t < c; ++t) {
      const T *v = row(w.v, t, V), *k = row(w.k, t, K), *e = error.data() + t * V;
      const int counted = V - w.denominator;
      *row(w.loss, t, 1) = w.solves ? T(0.5) * dot<T>(counted, e, e) : -dot<T>(counted, answer.data() + t * V, v);
      *row(w.gradient_norm, t, 1) = std::sqrt(dot<T>(K, k, k) * dot<T>(V, e, e));
    }
  }

  void write(T* m, T* s) {
    const T *keep = this->base_row(0, c), *pull = w.targets ? this->base_row(1, c) : nullptr;
    const T *push = s ? this->base_row(this->moving_part(), c) : nullptr, *target = this->part(1, m, s);
    for (int i = 0; i < K; ++i) {
      const int j = R > 1 ? i : 0;
      T *to = m + i * V, *moving = s ? s + i * V : nullptr;
      for (int u = 0; u < V; ++u) to[u] *= keep[j];
      if (pull)
        for (int u = 0; u < V; ++u) to[u] += pull[j] * target[i * V + u];
      if (s)
        for (int u = 0; u < V; ++u) to[u] += push[j] * moving[u], moving[u] *= this->left[c];
    }
    Scale<T> scale;
    scale.sign = -1, scale.add = true;
    if (s) {
      scale.inner = this->writes_row(c);
      times(K, c, V, row(w.k, 0, K), 1, stride * K, error.data(), V, 1, s, V, scale);
    }
    scale.inner = R > 1 ? nullptr : this->shares_row(c);
    const T* k = R > 1 ? this->last.data() : row(w.k, 0, K);
    times(K, c, V, k, 1, R > 1 ? K : stride * K, error.data(), V, 1, m, V, scale);
  }
};

// The way back, with a dash for the derivative of the outer loss. For the errors, of which y and what the block left
// are made, and for what they were solved from:
//
//     e_s' = -sum_t A[t,s] y_t' - G[C,s] k_s M_C' - W[C,s] k_s S_C'          (I + L)^T r' = e'          v' = -r'
//     A[t,s]' = -y_t' . e_s          L[t,s]' = -r_t' . e_s
//
// and then every recursion of the gates once more, from the last token to the first.
template <typename T> class WayBack : Block<T> {
  using Base = Block<T>;
  using Base::w, Base::C, Base::K, Base::V, Base::R, Base::P, Base::b, Base::h, Base::n, Base::c, Base::stride;
  using Base::at, Base::row, Base::own, Base::times, Base::decay, Base::real;
  using Base::to_base_row, Base::to_writes_row, Base::to_shares_row, Base::to_decay, Base::to_theta, Base::to_left;

 public:
  explicit WayBack(const Work& work)
      : Base(work), to_error(this->rows(V)), to_q(this->rows(K)), to_k(this->rows(K)), back(this->rows(K)),
        written(this->rows(K)), to_L(this->rows(C)), to_A(this->rows(C)), path((C + 1L) * K), to_held(K),
        products(K) {}

  void memory(int index) {
    for (long t = (w.T - 1) / C * C; t >= 0; t -= C) {
      this->enter(index, t);
      block();
    }
  }

 private:
  array<T> to_error, to_q, to_k, back, written, to_L, to_A, path, to_held, products;

  void block() {
    this->clear();
    for (auto* one : {&to_q, &to_k}) std::fill(one->begin(), one->end(), T(0));
    const T *k = row(w.k, 0, K), *q = row(w.q, 0, K), *e = row(w.errors, 0, V), *to_y = row(w.to_y, 0, V);
    T *after = own(w.weights), *after_moving = w.momentum ? own(w.moving) : nullptr;
    errors(k, to_y, after, after_moving);
    if (w.solves) solve_back();
    for (int t = 0; t < c; ++t) {
      T* to = row(w.to_v, t, V);
      for (int j = 0; j < V; ++j) to[j] = -to_error[t * V + j];
    }
    wrote(k, e, after, after_moving);
    started(q, k, to_y, after, after_moving);
    Scale<T> minus;
    minus.sign = -1, minus.wanted.last = 0;
    times(c, V, c, to_y, stride * V, 1, e, 1, stride * V, to_A.data(), C, minus);
    if (w.solves) times(c, V, c, to_error.data(), V, 1, e, 1, stride * V, to_L.data(), C, minus);
    R > 1 ? scored_by_channel() : scored(q, k);
    this->roll_back(row(w.to_step_size, 0, 1), row(w.to_log_momentum, 0, 1), row(w.to_log_decay, 0, R), stride);
    for (int t = 0; t < c; ++t) {
      std::copy_n(to_q.data() + t * K, K, row(w.to_q, t, K));
      std::copy_n(to_k.data() + t * K, K, row(w.to_k, t, K));
    }
  }

  void errors(const T* k, const T* to_y, const T* after, const T* after_moving) {
    Scale<T> minus;
    minus.sign = -1, minus.filled.first = 0;
    times(c, c, V, this->A.data(), 1, C, to_y, stride * V, 1, to_error.data(), V, minus);
    Scale<T> more;
    more.sign = -1, more.add = true;
    if (after_moving) {
      more.row = this->writes_row(c);
      times(c, K, V, k, stride * K, 1, after_moving, V, 1, to_error.data(), V, more);
    }
    more.row = R > 1 ? nullptr : this->shares_row(c);
    times(c, K, V, R > 1 ? this->last.data() : k, R > 1 ? K : stride * K, 1, after, V, 1, to_error.data(), V, more);
  }

  void solve_back() {
    for (int t = (c - 1) / ROWS * ROWS; t >= 0; t -= ROWS) {
      const int end = std::min(t + ROWS, c);
      Scale<T> minus;
      minus.sign = -1, minus.add = true;
      if (end < c)
        times(end - t, c - end, V, this->L.data() + end * C + t, 1, C, to_error.data() + end * V, V, 1,
              to_error.data() + t * V, V, minus);
      for (int i = end - 1; i > t; --i)
        for (int s = t; s < i; ++s) {
          const T weight = this->L[i * C + s], *from = to_error.data() + i * V;
          T* to = to_error.data() + s * V;
          for (int j = 0; j < V; ++j) to[j] -= weight * from[j];
        }
    }
  }

  // What was written: M_C = ... - sum_s G[C,s] k_s e_s^T, and S_C likewise.
  void wrote(const T* k, const T* e, const T* after, const T* after_moving) {
    if (after_moving) {
      times(c, V, K, e, stride * V, 1, after_moving, 1, V, back.data(), K);
      for (int s = 0; s < c; ++s) {
        const T share = this->writes_row(c)[s];
        to_writes_row(c)[s] -= dot<T>(K, k + s * stride * K, back.data() + s * K);
        for (int j = 0; j < K; ++j) to_k[s * K + j] -= share * back[s * K + j];
      }
    }
    times(c, V, K, e, stride * V, 1, after, 1, V, written.data(), K);
    if (R > 1) return;  // followed through the block with the rest of what each write becomes
    for (int s = 0; s < c; ++s) {
      const T share = this->shares_row(c)[s];
      to_shares_row(c)[s] -= dot<T>(K, k + s * stride * K, written.data() + s * K);
      for (int j = 0; j < K; ++j) to_k[s * K + j] -= share * written[s * K + j];
    }
  }

  // What was read and what is left of the parts the block started from.
  void started(const T* q, const T* k, const T* to_y, T* after, T* after_moving) {
    const T *m = this->kept(w.start), *s = w.momentum ? this->kept(w.start_moving) : nullptr;
    const long count = static_cast<long>(K) * V;
    if (s) to_left[c] += dot<T>(count, s, after_moving);
    T* to_target = w.targets ? own(w.to_target) : nullptr;
    for (int i = 0; i < K; ++i) {
      const int j = R > 1 ? i : 0;
      const long at = static_cast<long>(i) * V;
      for (int p = 0; p < P; ++p) to_base_row(p, c)[j] += dot<T>(V, this->part(p, m, s) + at, after + at);
      const T keep = this->base_row(0, c)[j], push = s ? this->base_row(this->moving_part(), c)[j] : T(0);
      const T pull = w.targets ? this->base_row(1, c)[j] : T(0), carry = this->left[c];
      if (to_target)
        for (int u = 0; u < V; ++u) to_target[at + u] += pull * after[at + u];
      if (s)
        for (int u = 0; u < V; ++u) after_moving[at + u] = carry * after_moving[at + u] + push * after[at + u];
      for (int u = 0; u < V; ++u) after[at + u] *= keep;
    }
    for (int p = 0; p < P; ++p) {
      T* to_part = p == 0 ? after : w.targets && p == 1 ? to_target : after_moving;
      through_part(p, false, q, to_y, stride * V, this->part(p, m, s), to_part, to_q.data());
      if (w.solves) through_part(p, true, k, to_error.data(), V, this->part(p, m, s), to_part, to_k.data());
    }
  }

  // Rows x read part p, weighted; `grad` [c, V] is the derivative with respect to what came of it.
  void through_part(int p, bool meeting, const T* x, const T* grad, long apart, const T* part, T* to_part, T* to_x) {
    times(c, V, K, grad, apart, 1, part, 1, V, back.data(), K);
    for (int t = 0; t < c; ++t) {
      const T *weight = meeting ? this->met.data() + (p * C + t) * R : this->base_row(p, this->read_row(t));
      const T *from = back.data() + t * K, *z = x + t * stride * K;
      T *to = to_x + t * K, *to_weight = meeting ? products.data() : to_base_row(p, this->read_row(t));
      if (R > 1) {
        if (meeting) std::fill_n(to_weight, R, T(0));
        for (int j = 0; j < K; ++j) to[j] += weight[j] * from[j], to_weight[j] += z[j] * from[j];
      } else {
        const T value = dot<T>(K, z, from);
        if (meeting) to_weight[0] = value;
        else to_weight[0] += value;
        for (int j = 0; j < K; ++j) to[j] += weight[0] * from[j];
      }
      if (!meeting) continue;
      T* to_row = to_base_row(p, t);
      for (int j = 0; j < R; ++j) {
        const T a = decay[t * R + j];
        to_row[j] += to_weight[j] * (w.decayed ? a : T(1));
        if (w.decayed) to_decay[t * R + j] += to_weight[j] * (this->base_row(p, t)[j] - T(w.targets && p == 1));
      }
    }
    Scale<T> scale;
    scale.add = true;
    if (R > 1) {
      long between;
      const T* z = this->seen_by_part(x, p, meeting, scale, between);
      scale.row = nullptr;
      times(K, c, V, z, 1, between, grad, apart, 1, to_part, V, scale);
    } else {
      scale.inner = meeting ? this->met.data() + p * C : this->base_row(p, this->read_row(0));
      times(K, c, V, x, 1, stride * K, grad, apart, 1, to_part, V, scale);
    }
  }

  // Scores of one rate: products of rows, times what is left.
  void scored(const T* q, const T* k) {
    for (int t = 0; t < c; ++t) {
      const T factor = w.decayed ? decay[t] : T(1), *held = this->shares_row(t), *read = this->shares_row(this->read_row(t));
      T *meet = to_L.data() + t * C, *ask = to_A.data() + t * C;
      T *to_held = to_shares_row(t), *to_read = to_shares_row(this->read_row(t));
      const T *keys = this->keys.data() + t * C, *queries = this->queries.data() + t * C;
      for (int s = 0; s <= t; ++s) {
        to_read[s] += ask[s] * queries[s];
        ask[s] *= read[s];
      }
      std::fill(ask + t + 1, ask + C, T(0));
      if (!w.solves) continue;
      T sum = 0;
      for (int s = 0; s < t; ++s) {
        const T sent = meet[s] * keys[s];
        to_held[s] += factor * sent;
        sum += sent * held[s];
        meet[s] *= held[s] * factor;
      }
      if (w.decayed) to_decay[t] += sum;
      std::fill(meet + t, meet + C, T(0));
    }
    Scale<T> forth, over;
    forth.add = true, forth.filled.last = 0;
    over.add = true, over.filled.first = 0;
    times(c, c, K, to_A.data(), C, 1, k, stride * K, 1, to_q.data(), K, forth);
    times(c, c, K, to_A.data(), 1, C, q, stride * K, 1, to_k.data(), K, over);
    if (!w.solves) return;
    times(c, c, K, to_L.data(), C, 1, k, stride * K, 1, to_k.data(), K, forth);
    times(c, c, K, to_L.data(), 1, C, k, stride * K, 1, to_k.data(), K, over);
  }

  // With a rate per channel: `path[t]` is what is left of the write of token s after token t.
  void scored_by_channel() {
    for (int s = 0; s < c; ++s) {
      const T* key = row(w.k, s, K);
      T* to_key = to_k.data() + s * K;
      for (int t = s; t < c; ++t) {
        const T *a = decay.data() + t * K, more = real[t] * this->writes_row(t + 1)[s];
        const T* from = path.data() + t * K;
        T* to = path.data() + (t + 1) * K;
        for (int j = 0; j < K; ++j) to[j] = t == s ? more : w.momentum ? from[j] * a[j] + more : from[j] * a[j];
      }
      const T* share = path.data() + c * K;
      for (int j = 0; j < K; ++j) {
        to_held[j] = -key[j] * written[s * K + j];
        to_key[j] -= share[j] * written[s * K + j];
      }
      for (int t = c - 1; t >= s; --t) {
        const T *q = row(w.q, t, K), *k = row(w.k, t, K), *a = decay.data() + t * K;
        const T *held = path.data() + t * K, *now = path.data() + (t + 1) * K;
        T *to_query = to_q.data() + t * K, *to_other = to_k.data() + t * K, *to_a = to_decay.data() + t * K;
        const T asked = to_A[t * C + s], sent = w.solves ? to_L[t * C + s] : T(0);
        if (!w.read_before) through_score(asked, q, key, now, to_query, to_key);
        if (w.momentum || t == s) {
          T sum = 0;
          for (int j = 0; j < K; ++j) sum += to_held[j];
          if (w.momentum) to_writes_row(t + 1)[s] += real[t] * sum;
          else to_theta[t] += real[t] * sum;
        }
        if (t == s) break;
        if (w.solves && w.decayed) {
          for (int j = 0; j < K; ++j) {
            const T score = sent * k[j] * key[j], kept = held[j] * a[j];
            to_other[j] += sent * key[j] * kept;
            to_key[j] += sent * k[j] * kept;
            to_held[j] += score;  // derivative with respect to what was left after the decay
          }
        }
        for (int j = 0; j < K; ++j) {
          to_a[j] += to_held[j] * held[j];
          to_held[j] *= a[j];
        }
        if (w.solves && !w.decayed) through_score(sent, k, key, held, to_other, to_key);
        if (w.read_before) through_score(asked, q, key, held, to_query, to_key);
      }
    }
  }

  // score = sum_j x_j key_j share_j
  void through_score(T grad, const T* x, const T* key, const T* share, T* to_x, T* to_key) {
    for (int j = 0; j < K; ++j) {
      to_held[j] += grad * x[j] * key[j];
      to_x[j] += grad * key[j] * share[j];
      to_key[j] += grad * x[j] * share[j];
    }
  }
};

}  // namespace

extern "C" {
void read_blocks(const Work* work) { run_in_its_precision<Reader>(*work, work->B * work->H); }
void go_back(const Work* work) { run_in_its_precision<WayBack>(*work, work->B * work->H); }
int size_of_work() { return sizeof(Work); }
}
