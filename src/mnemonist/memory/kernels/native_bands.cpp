// Attention of many queries, each to a band of keys: those up to its own place, within a window if there is one. Keys come
// in groups of bands (what was recalled for each token, and the tokens), and some may be seen by all queries.
//
//     score_ts = scale q_t . k_s      y_t = sum_s softmax(score_t)_s v_s      s: what t sees in all groups
//
// A unit of work is a head of keys of a row, and the heads of queries that share it one after the other. It goes through
// queries block by block, with all that a block sees at once: so a softmax needs no second pass, and the way back adds to
// keys and values while they are in the cache.

#include "native_matrix.h"

extern "C" {

constexpr int MOST_GROUPS = 3;

// As `_Work` in native_bands.py. Pointers are to float or double.
struct Work {
  int64_t tokens, q_row, q_token;                            // queries of a row; strides, heads lie side by side
  int64_t places[MOST_GROUPS], window[MOST_GROUPS];          // keys of a row; those that a query sees, or 0: all of them
  int64_t key_row[MOST_GROUPS], key_token[MOST_GROUPS], value_row[MOST_GROUPS], value_token[MOST_GROUPS];
  int32_t rows, heads, key_heads, width, groups, threads, double_precision;
  double scale;
  const void* q;                                             // [rows, tokens, heads, width]
  const void *keys[MOST_GROUPS], *values[MOST_GROUPS];       // [rows, places, key_heads, width]
  const int64_t* first;                                      // [rows]: places of group 0 that hold nothing
  void *y, *log_sum;                                         // [rows, tokens, heads, width], [rows, heads, tokens]
  const void* to_y;                                          // the way back: derivatives, without gaps
  void *to_q, *to_keys[MOST_GROUPS], *to_values[MOST_GROUPS];
};
}

namespace {

constexpr long BLOCK = 64;  // queries of a block

template <typename T> class Bands {
 protected:
  static constexpr int W = Vector<T>::width;

  // What a block sees of a group: keys from `first` on, in so many columns of the scores from `at` on; and of these, which
  // each query sees, as diagonals.
  struct Part {
    long first, columns, at;
    Diagonals band;
  };

  explicit Bands(const Work& work) : w(work), D(work.width), between(work.heads * D), scale(static_cast<T>(work.scale)) {
    for (int g = 0; g < w.groups; ++g) columns += most_columns(g);
    strip.resize(2L * W * std::max({columns, BLOCK, D}));
    scores.resize(BLOCK * columns);
  }

  const Work& w;
  const long D, between;  // between a head's vectors of two tokens, where there are no gaps
  const T scale;
  long columns = 0;       // of the scores
  long row = 0, key_head = 0, head = 0, begin = 0, count = 0;  // of the present block
  Part parts[MOST_GROUPS];
  array<T> strip, scores;
  Ahead ahead;

  // A block's band, and up to a strip more, so that columns come in whole strips.
  long most_columns(int g) const {
    const long band = w.window[g] ? std::min(w.places[g], w.window[g] + BLOCK + 2 * W) : w.places[g];
    return (band + W - 1) / W * W;
  }

  static const T* at(const void* p, long index) { return static_cast<const T*>(p) + index; }
  static T* at(void* p, long index) { return static_cast<T*>(p) + index; }
  const T* q() const { return at(w.q, row * w.q_row + begin * w.q_token + head * D); }
  const T* keys(int g) const { return at(w.keys[g], row * w.key_row[g] + parts[g].first * w.key_token[g] + key_head * D); }
  const T* values(int g) const {
    return at(w.values[g], row * w.value_row[g] + parts[g].first * w.value_token[g] + key_head * D);
  }
  long place() const { return (row * w.tokens + begin) * between + head * D; }  // of the block, where there are no gaps
  long statistic() const { return (row * w.heads + head) * w.tokens + begin; }

  template <typename Each> void each_block(int unit, Each each) {
    row = unit / w.key_heads, key_head = unit % w.key_heads;
    const long group = w.heads / w.key_heads;
    for (head = key_head * group; head < (key_head + 1) * group; ++head) each_block_of_head(each);
  }

  template <typename Each> void each_block_of_head(Each each) {
    for (begin = 0; begin < w.tokens; begin += BLOCK) {
      count = std::min(BLOCK, w.tokens - begin);
      long to = 0;
      for (int g = 0; g < w.groups; ++g) {
        const auto [first, past] = seen(g, begin, begin + count - 1);
        const long spare = w.window[g] ? std::min(first - empty(g), (2 * W - (past - first) % (2 * W)) % (2 * W)) : 0;
        parts[g] = {first - spare, past - first + spare, to, {}};
        if (w.window[g]) {
          const long own = begin + w.places[g] - w.tokens - parts[g].first;
          parts[g].band = {own - w.window[g] + 1, own};
        }
        to += most_columns(g);
      }
      want_next();
      each();
    }
  }

  // Ask early for the queries of the next block, and the keys and values that this one has not met.
  void want_next() {
    const long next = begin + count;
    want(q() + count * w.q_token, w.q_token, next);
    for (int g = 0; g < w.groups; ++g) {
      if (!w.window[g]) continue;  // all queries see the same
      const long past = parts[g].columns;
      want(keys(g) + past * w.key_token[g], w.key_token[g], next);
      want(values(g) + past * w.value_token[g], w.value_token[g], next);
    }
  }
  // Vectors of so many tokens as there are in the block that begins at `next`.
  void want(const T* from, long token, long next) {
    if (next < w.tokens) ahead.want(from, D * sizeof(T), std::min(BLOCK, w.tokens - next), token * sizeof(T));
  }

  // Keys of a group that queries from one to another see: the first, and the one past the last.
  std::pair<long, long> seen(int g, long from, long to) const {
    if (!w.window[g]) return {0, w.places[g]};
    const long shift = w.places[g] - w.tokens;
    return {std::max<long>(empty(g), from + shift - w.window[g] + 1), to + shift + 1};
  }
  long empty(int g) const { return g ? 0 : w.first[row]; }  // places that are never looked at

  // scores = a block of `from` [count, D] times vectors of each group, transposed.
  template <typename Of> void meet(const T* from, long stride, Of of, T* to) {
    for (int g = 0; g < w.groups; ++g) {
      const auto [vectors, token] = of(g);
      Scale<T> some;
      some.wanted = parts[g].band, some.ahead = &ahead;
      product<T>(count, parts[g].columns, D, from, stride, 1, vectors, 1, token, to + parts[g].at, columns, strip.data(),
                 some);
    }
  }
  void score() {
    meet(q(), w.q_token, [&](int g) { return std::make_pair(keys(g), w.key_token[g]); }, scores.data());
  }

  // Of each query, what it sees of each group: change(t, columns, how many); zero for what it does not see.
  template <typename Change> void for_seen(T* of, Change change) {
    for (long t = 0; t < count; ++t)
      for (int g = 0; g < w.groups; ++g) {
        const auto [first, past] = seen(g, begin + t, begin + t);
        T *row = of + t * columns + parts[g].at, *from = row + (first - parts[g].first), *to = row + (past - parts[g].first);
        change(t, from, to - from);
        std::fill(row, from, T(0));
        std::fill(to, row + parts[g].columns, T(0));
      }
  }
};

template <typename T> class Reader : Bands<T> {
  using Base = Bands<T>;
  using Base::w, Base::D, Base::between, Base::scale, Base::columns, Base::begin, Base::count, Base::parts, Base::scores;

 public:
  explicit Reader(const Work& work) : Base(work) {}

  void memory(int unit) {
    this->each_block(unit, [&] { block(); });
  }

 private:
  T most[BLOCK], sums[BLOCK], inverse[BLOCK];

  void block() {
    this->score();
    std::fill_n(most, count, -std::numeric_limits<T>::infinity());
    this->for_seen(scores.data(), [&](long t, T* x, long n) { most[t] = std::max(most[t], largest(n, x)); });
    std::fill_n(sums, count, T(0));
    this->for_seen(scores.data(), [&](long t, T* x, long n) { sums[t] += exponentials(n, x, scale, most[t] * scale); });
    for (long t = 0; t < count; ++t) {
      inverse[t] = 1 / sums[t];
      this->at(w.log_sum, this->statistic())[t] = most[t] * scale + std::log(sums[t]);
    }
    Scale<T> share;
    share.row = inverse, share.ahead = &this->ahead;
    for (int g = 0; g < w.groups; ++g) {
      share.filled = parts[g].band;
      product<T>(count, D, parts[g].columns, scores.data() + parts[g].at, columns, 1, this->values(g), w.value_token[g], 1,
                 this->at(w.y, this->place()), between, this->strip.data(), share);
      share.add = true;
    }
  }
};

// With P what softmax gives, and a dash for the derivative of the loss: V' = P^T y', and with S' = P (y' V^T - y' . y) scale
// q' = S' K and K' = S'^T q.
template <typename T> class WayBack : Bands<T> {
  using Base = Bands<T>;
  using Base::w, Base::D, Base::between, Base::scale, Base::columns, Base::begin, Base::count, Base::parts, Base::scores;
  using typename Base::Part;

 public:
  explicit WayBack(const Work& work) : Base(work), to_scores(scores.size()) {}

  void memory(int unit) {
    std::fill_n(met, MOST_GROUPS, 0L);
    this->each_block(unit, [&] { block(); });
  }

 private:
  array<T> to_scores;
  T common[BLOCK];        // of a query's answer and its derivative
  long met[MOST_GROUPS];  // keys of a group whose derivatives have begun

  T* adjoint(void* const* group, int g, long first) const {  // of a key or value of the present head
    return this->at(group[g], ((this->row * w.places[g] + first) * w.key_heads + this->key_head) * D);
  }

  void block() {
    const T *to_y = this->at(w.to_y, this->place()), *y = this->at(static_cast<const void*>(w.y), this->place());
    const T* log_sum = this->at(static_cast<const void*>(w.log_sum), this->statistic());
    this->want(to_y + count * between, between, begin + count);
    this->want(y + count * between, between, begin + count);
    this->score();
    this->for_seen(scores.data(), [&](long t, T* x, long n) { exponentials(n, x, scale, log_sum[t]); });
    this->meet(to_y, between, [&](int g) { return std::make_pair(this->values(g), w.value_token[g]); }, to_scores.data());
    for (long t = 0; t < count; ++t) common[t] = dot<T>(D, to_y + t * between, y + t * between);
    this->for_seen(to_scores.data(), [&](long t, T* to, long n) {
      const T* p = scores.data() + (to - to_scores.data());
      for (long s = 0; s < n; ++s) to[s] = p[s] * (to[s] - common[t]) * scale;
    });
    for (int g = 0; g < w.groups; ++g) {
      const Part part = parts[g];
      const long past = part.first + part.columns;
      for (long s = met[g]; s < past; ++s)
        for (auto* group : {w.to_keys, w.to_values}) std::fill_n(adjoint(group, g, s), D, T(0));
      met[g] = std::max(met[g], past);
      T *to_s = to_scores.data() + part.at, *p = scores.data() + part.at, *strip = this->strip.data();
      Scale<T> add;
      add.add = g > 0, add.filled = part.band, add.ahead = &this->ahead;
      product<T>(count, D, part.columns, to_s, columns, 1, this->keys(g), w.key_token[g], 1,
                 this->at(w.to_q, this->place()), between, strip, add);
      add.add = true, add.filled = {-part.band.last, -part.band.first};
      product<T>(part.columns, D, count, to_s, 1, columns, this->q(), w.q_token, 1, adjoint(w.to_keys, g, part.first),
                 w.key_heads * D, strip, add);
      product<T>(part.columns, D, count, p, 1, columns, to_y, between, 1, adjoint(w.to_values, g, part.first),
                 w.key_heads * D, strip, add);
    }
  }
};

}  // namespace

extern "C" {
void read_bands(const Work* work) { run_in_its_precision<Reader>(*work, work->rows * work->key_heads); }
void go_back(const Work* work) { run_in_its_precision<WayBack>(*work, work->rows * work->key_heads); }
int size_of_work() { return sizeof(Work); }
}
