// The memory as a network: its non-linearity, what its last layer's answers become, and its inner loss, token by token.
// The equations are those of network.py.

#pragma once

#include "native_matrix.h"

namespace {

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

// Vectors of V numbers: keys, values and answers of one token.
template <typename T> struct Network {
  const int V, counted;  // of the answer; those that the loss counts: what sums up the writes is no part of it
  const int activation, objective;
  const bool norm, residual;
  const T delta, eps;

  template <typename Work>
  Network(const Work& w, int width)
      : V(width), counted(V - w.denominator), activation(w.activation), objective(w.objective), norm(w.norm),
        residual(w.residual), delta(T(w.huber_delta)), eps(T(w.norm_eps)) {}

  // y, its first and its second derivative, all optional; y may be x.
  void activate(long count, const T* x, T* y, T* slope, T* curve) const {
    ::activate<T>(activation, count, x, y, slope, curve);
  }

  // What the last layer gave becomes normal; returns the inverse of its deviation.
  T normalise(T* row) const {
    if (!norm) return 1;
    const T mean = sum<T>(V, row) / V;
    for (int j = 0; j < V; ++j) row[j] -= mean;
    const T inverse = 1 / std::sqrt(dot<T>(V, row, row) / V + eps);
    for (int j = 0; j < V; ++j) row[j] *= inverse;
    return inverse;
  }

  // The derivative of the normalisation, which is its own transpose; `to` may be `error`.
  void through_norm(const T* normed, T inverse, const T* error, T* to) const {
    if (!norm) {
      if (to != error) std::copy_n(error, V, to);
      return;
    }
    const T mean = sum<T>(V, error) / V, along = dot<T>(V, error, normed) / V;
    for (int j = 0; j < V; ++j) to[j] = inverse * (error[j] - mean - normed[j] * along);
  }

  // Derivative of the inner loss with respect to the answer.
  void error(const T* normed, const T* key, const T* value, T* to) const {
    if (objective == DOT) {
      for (int j = 0; j < V; ++j) to[j] = -value[j];
      return;
    }
    for (int j = 0; j < V; ++j) to[j] = normed[j] - value[j];
    if (residual)
      for (int j = 0; j < V; ++j) to[j] += key[j];
    if (objective == HUBER)
      for (int j = 0; j < V; ++j) to[j] = std::min(std::max(to[j], -delta), delta);
  }

  T loss(const T* normed, const T* key, const T* value) const {
    T loss = 0;
    for (int j = 0; j < counted; ++j) {
      const T output = normed[j] + (residual ? key[j] : 0), off = output - value[j], far = std::abs(off);
      switch (objective) {
        case L2: loss += T(0.5) * off * off; break;
        case DOT: loss -= output * value[j]; break;
        default: loss += far <= delta ? T(0.5) * off * off : delta * (far - T(0.5) * delta);
      }
    }
    return loss;
  }
};

}  // namespace
