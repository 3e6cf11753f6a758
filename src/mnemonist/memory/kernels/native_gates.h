// What the gates of a block of tokens amount to, and the way back through it: the algebra of gates.py as recursions.
//
// With a the decay, eta the momentum and theta the step size of a token (rows count from 0, the block's start):
//
//     W[t,s] = eta_t W[t-1,s] + [s = t] theta_t              G[t,s] = a_t G[t-1,s] + W[t,s]
//     m_t = eta_t m_{t-1}     f_t = a_t f_{t-1} + m_t     beta_t = a_t beta_{t-1}     tau_t = a_t tau_{t-1} + 1 - a_t
//
// so that M_t = beta_t M_0 + tau_t target + f_t S_0 - sum_s G[t,s] g_s, and S_t = m_t S_0 - sum_s W[t,s] g_s. A padded
// token lets neither W nor m act on M. Where every channel of the keys forgets at its own rate, a, beta, tau and f are
// vectors over channels, and G, which then is one too, is left to the caller.

#pragma once

#include "native_matrix.h"

namespace {

template <typename T> class Gates {
 protected:
  // C: most tokens of a block. R: rates of decay, 1 or one per channel. P: parts a block starts from: M, target, S.
  Gates(int most, int rates, bool decays, bool momentum, bool targets)
      : C(most), R(rates), P(1 + targets + momentum), decays(decays), momentum(momentum), targets(targets),
        decay(1L * C * R), pull(decay.size()), eta(C), theta(C), real(C), left(C + 1), log_base(R),
        base(P * (C + 1L) * R), writes((C + 1L) * C), shares(writes.size()) {}

  const int C, R, P;
  const bool decays, momentum, targets;
  int c = 0;  // tokens of this block
  array<T> decay, pull, eta, theta, real, left;
  array<T> to_base, to_writes, to_shares, to_decay, to_eta, to_theta, to_left;  // derivatives, if asked for

  T* base_row(int p, int t) { return base.data() + (p * (C + 1L) + t) * R; }     // beta, tau, f
  T* writes_row(int t) { return writes.data() + static_cast<long>(t) * C; }      // W[t, :]
  T* shares_row(int t) { return shares.data() + static_cast<long>(t) * C; }      // G[t, :], with one rate
  T* to_base_row(int p, int t) { return to_base.data() + (p * (C + 1L) + t) * R; }
  T* to_writes_row(int t) { return to_writes.data() + static_cast<long>(t) * C; }
  T* to_shares_row(int t) { return to_shares.data() + static_cast<long>(t) * C; }
  int moving_part() const { return P - 1; }

  // Gates of a token stand `stride` behind those of the one before it; `valid` may be null.
  void unroll(int tokens, const T* step_size, const T* log_momentum, const T* log_decay, long stride,
              const uint8_t* valid) {
    c = tokens;
    for (int t = 0; t < c; ++t) {
      theta[t] = step_size[t * stride];
      eta[t] = momentum ? std::exp(log_momentum[t * stride]) : T(0);
      real[t] = !valid || valid[t];
      if (!decays) {
        decay[t] = 1, pull[t] = 0;
        continue;
      }
      const T* log = log_decay + t * stride * R;
      exponentials(log, decay.data() + t * R);
      if (targets)
        for (int j = 0; j < R; ++j) pull[t * R + j] = -std::expm1(log[j]);
    }
    left[0] = 1;
    T log_left = 0;
    std::fill_n(log_base.data(), R, T(0));
    for (int p = 0; p < P; ++p) std::fill_n(base_row(p, 0), R, T(p == 0));
    std::fill_n(writes_row(0), C, T(0));
    std::fill_n(shares_row(0), C, T(0));
    for (int t = 0; t < c; ++t) {
      const T *a = decay.data() + t * R, *pulled = pull.data() + t * R;
      // What goes on from block to block is the exponential of a sum: a decay near 1, rounded at every token, is another.
      left[t + 1] = momentum ? std::exp(log_left += log_momentum[t * stride]) : T(0);
      if (decays)
        for (int j = 0; j < R; ++j) log_base[j] += log_decay[t * stride * R + j];
      exponentials(log_base.data(), base_row(0, t + 1));
      if (targets)
        for (int j = 0; j < R; ++j) base_row(1, t + 1)[j] = a[j] * base_row(1, t)[j] + pulled[j];
      if (momentum)
        for (int j = 0; j < R; ++j)
          base_row(moving_part(), t + 1)[j] = a[j] * base_row(moving_part(), t)[j] + real[t] * left[t + 1];
      T *old = writes_row(t), *now = writes_row(t + 1);
      for (int s = 0; s < t; ++s) now[s] = eta[t] * old[s];
      now[t] = theta[t];
      if (R > 1) continue;
      T *held = shares_row(t), *share = shares_row(t + 1);
      for (int s = 0; s < t; ++s) share[s] = a[0] * held[s] + real[t] * now[s];
      share[t] = real[t] * now[t];
      std::fill(now + t + 1, now + C, T(0));
      std::fill(share + t + 1, share + C, T(0));
    }
  }

  // Forget all derivatives.
  void clear() {
    to_base.assign(base.size(), T(0));
    to_writes.assign(writes.size(), T(0));
    to_shares.assign(shares.size(), T(0));
    to_decay.assign(decay.size(), T(0));
    for (auto* one : {&to_eta, &to_theta}) one->assign(C, T(0));
    to_left.assign(C + 1, T(0));
  }

  // From the derivatives with respect to all of the above to those of the gates, from the last token to the first.
  void roll_back(T* to_step_size, T* to_log_momentum, T* to_log_decay, long stride) {
    for (int t = c - 1; t >= 0; --t) {
      T* to_a = to_decay.data() + t * R;
      if (R == 1) {
        const T *to_share = to_shares_row(t + 1), *held = shares_row(t), a = decay[t];
        T *to_old = to_shares_row(t), *to_write = to_writes_row(t + 1);
        for (int s = 0; s < t; ++s) to_old[s] += a * to_share[s];
        to_a[0] += dot<T>(t, to_share, held);
        if (momentum)
          for (int s = 0; s <= t; ++s) to_write[s] += real[t] * to_share[s];
        else
          to_theta[t] += real[t] * to_share[t];
      }
      for (int p = 0; p < P; ++p) {
        const T *to_now = to_base_row(p, t + 1), *old = base_row(p, t), *a = decay.data() + t * R;
        T* to_old = to_base_row(p, t);
        for (int j = 0; j < R; ++j) {
          to_a[j] += to_now[j] * (old[j] - T(targets && p == 1));
          to_old[j] += a[j] * to_now[j];
        }
        if (momentum && p == moving_part()) {
          T sum = 0;
          for (int j = 0; j < R; ++j) sum += to_now[j];
          to_left[t + 1] += real[t] * sum;
        }
      }
      if (momentum) {
        const T *to_write = to_writes_row(t + 1), *old = writes_row(t);
        T* to_old = to_writes_row(t);
        to_theta[t] += to_write[t];
        to_eta[t] += dot<T>(t, to_write, old) + to_left[t + 1] * left[t];
        for (int s = 0; s < t; ++s) to_old[s] += eta[t] * to_write[s];
        to_left[t] += eta[t] * to_left[t + 1];
        to_log_momentum[t * stride] = to_eta[t] * eta[t];
      }
      to_step_size[t * stride] = to_theta[t];
      if (!decays) continue;
      T* to = to_log_decay + t * stride * R;
      for (int j = 0; j < R; ++j) to[j] = to_a[j] * decay[t * R + j];
    }
  }

 private:
  array<T> log_base, base, writes, shares;

  // Of R logs; what is too small for a number is zero.
  void exponentials(const T* log, T* to) const {
    constexpr int W = Vector<T>::width;
    const T least = sizeof(T) == 4 ? -87 : -708;
    for (int j = 0; j < R; j += W) {
      T in[W] = {}, out[W];
      const int count = std::min(W, R - j);
      std::copy_n(log + j, count, in);
      store(out, exponential<T>(load(in)));
      for (int i = 0; i < count; ++i) to[j + i] = in[i] < least ? T(0) : out[i];
    }
  }
};

}  // namespace
