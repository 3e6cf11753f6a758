// One query a row, against the keys that the row has read: how a transformer writes. Rows have read unequally much, and
// each pays for its own keys alone. A unit of work is a row, or where there are few of them a head of one.
//
//     score_s = scale q . k_s      y = sum_s softmax(score)_s v_s      s: persistent tokens, then first[row] .. tokens - 1
//
// Heads may share keys and values: as many as follow each other as there are heads to a head of keys.

#include "native_matrix.h"

extern "C" {

// As `_Work` in native_attention.py. Pointers are to float or double.
struct Work {
  int64_t tokens;                                       // places of each row; the first ones may be empty
  int64_t key_row, key_token, value_row, value_token;   // strides; heads lie side by side
  int32_t rows, heads, key_heads, width, persistent, threads, double_precision;
  double scale;
  const void *q;                                        // [rows, heads, width]
  const void *keys, *values;
  const void *persistent_keys, *persistent_values;      // [persistent, key_heads, width]
  const int64_t* first;                                 // [rows]
  void* y;                                              // [rows, heads, width]
};
}

namespace {

constexpr long BLOCK = 64;  // tokens whose heads follow each other while they are in the nearest cache

bool by_rows(const Work& work) { return work.rows >= work.threads; }
int units(const Work& work) { return by_rows(work) ? work.rows : work.rows * work.heads; }

template <typename T> struct Newest {
  const Work& w;
  const long D, between, group, places;  // between a head's own keys of two tokens; heads that share keys; weights of a head
  const T scale;
  array<T> weights;
  explicit Newest(const Work& work)
      : w(work), D(work.width), between(work.key_heads * D), group(work.heads / work.key_heads),
        places(work.persistent + work.tokens), scale(static_cast<T>(work.scale)), weights(work.heads * places) {}

  void memory(int n) {
    if (by_rows(w)) return heads(n, 0, w.heads);
    heads(n / w.heads, n % w.heads, n % w.heads + 1);
  }

  void heads(long row, long begin, long end) {
    const T* q = static_cast<const T*>(w.q) + row * w.heads * D;
    T* y = static_cast<T*>(w.y) + row * w.heads * D;
    const long first = w.first[row], P = w.persistent;
    const T* keys = static_cast<const T*>(w.keys) + row * w.key_row;
    const T* values = static_cast<const T*>(w.values) + row * w.value_row;
    const auto *own_keys = static_cast<const T*>(w.persistent_keys), *own_values = static_cast<const T*>(w.persistent_values);
    array<T> share(end);
    for (long h = begin; h < end; ++h) inner_products(D, q + h * D, own_keys + h / group * D, between, P, scale, of(h));
    blocks(first, [&](long s, long count) {
      for (long h = begin; h < end; ++h)
        inner_products(D, q + h * D, keys + s * w.key_token + h / group * D, w.key_token, count, scale,
                       of(h) + P + s - first);
    });
    for (long h = begin; h < end; ++h) {
      share[h] = T(1) / softmax(P + w.tokens - first, of(h));
      std::fill_n(y + h * D, D, T(0));
      weighted_sum(D, P, of(h), own_values + h / group * D, between, share[h], y + h * D);
    }
    blocks(first, [&](long s, long count) {
      for (long h = begin; h < end; ++h)
        weighted_sum(D, count, of(h) + P + s - first, values + s * w.value_token + h / group * D, w.value_token,
                     share[h], y + h * D);
    });
  }

  T* of(long h) { return weights.data() + h * places; }

  template <typename Each> void blocks(long first, Each each) const {
    for (long s = first; s < w.tokens; s += BLOCK) each(s, std::min(BLOCK, w.tokens - s));
  }

  // Scores become their exponentials, less the largest; the sum of these.
  static T softmax(long count, T* scores) { return exponentials(count, scores, T(1), largest(count, scores)); }
};

}  // namespace

extern "C" {
void newest(const Work* work) { run_in_its_precision<Newest>(*work, units(*work)); }
int size_of_work() { return sizeof(Work); }
}
