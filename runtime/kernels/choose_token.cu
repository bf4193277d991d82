// The next token of every row, one block a row: what logits.process and logits.warp say, in their order, and the draw.
//
// Sums of probabilities are sums of whole numbers, which are the same in whatever order they are added up.

enum { TEMPERATURE, TOP_K, DROPPED, MIN_P, PENALTY, SCALE_OF_GUIDANCE };  // rules
enum { FRESH, ARRIVED, LONGEST, PAD };                                    // state

// A whole number that is the larger the larger x is; NaN is the largest, as it is to argmax, and -0 is 0.
DEVICE uint32 ordered(float x) {
    if (x != x) return 0xffffffff;
    const uint32 bits = __float_as_uint(x == 0.0f ? 0.0f : x);
    return bits >> 31 ? ~bits : bits | 0x80000000;
}

DEVICE float unordered(uint32 key) { return __uint_as_float(key >> 31 ? key & 0x7fffffff : ~key); }

// How likely a score is, the best one being 2^40.
DEVICE uint64 weight(float score, float best) { return (uint64)rintf(expf(score - best) * 1099511627776.0f); }

// Where the values, in the order of the places, first add up to more than `target`; they do.
template <class Value> DEVICE int locate(int places, uint64 target, Value value) {
    __shared__ uint64 sums[32];
    __shared__ int found;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
    const int span = (places + 32 * warps - 1) / (32 * warps) * 32, first = warp * span;
    const int last = first + span < places ? first + span : places;
    uint64 sum = 0;
    for (int i = first + lane; i < last; i += 32) sum += value(i);
    for (int step = 16; step; step /= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    __syncthreads();  // of a call before, all have read
    if (lane == 0) sums[warp] = sum;
    __syncthreads();
    uint64 before = 0;
    for (int other = 0; other < warp; ++other) before += sums[other];
    if (before <= target && target < before + sums[warp]) {  // in one warp
        for (int start = first;; start += 32) {
            uint64 upto = start + lane < last ? value(start + lane) : 0;
            for (int step = 1; step < 32; step *= 2) {
                const uint64 left = __shfl_up_sync(0xffffffff, upto, step);
                if (lane >= step) upto += left;
            }
            const uint32 past = __ballot_sync(0xffffffff, before + upto > target);
            if (past) {
                if (lane == 0) found = start + __ffs(past) - 1;
                break;
            }
            before += __shfl_sync(0xffffffff, upto, 31);
        }
    }
    __syncthreads();
    return found;
}

// The sums over all threads of eight values, for all of them.
DEVICE void eight_together(uint64 sums[8]) {
    __shared__ uint64 parts[32 * 8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int half = 4; half; half /= 2)  // lanes share the sums out, so that each has one in the end
#pragma unroll
        for (int j = 0; j < half; ++j) {
            const uint64 kept = lane & half ? sums[j + half] : sums[j], given = lane & half ? sums[j] : sums[j + half];
            sums[j] = kept + __shfl_xor_sync(0xffffffff, given, half);
        }
    uint64 sum = sums[0];
    for (int step = 8; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
    __syncthreads();  // of a call before, all have read
    if (lane < 8) parts[8 * warp + lane] = sum;
    __syncthreads();
    sum = 0;
    for (int i = lane; i < (int)blockDim.x / 32 * 8; i += 32) sum += parts[i];
    for (int step = 8; step < 32; step *= 2) sum += __shfl_xor_sync(0xffffffff, sum, step);
#pragma unroll
    for (int j = 0; j < 8; ++j) sums[j] = __shfl_sync(0xffffffff, sum, j);
}

// The key at which the values, added up from the smallest key, stop being `few`; and what they add up to below it.
// Three bits of the key are found at a time. Where all together are few, it is the largest key that has a value.
template <class Value, class Few>
DEVICE uint32 descend(const float *scores, int places, Value value, Few few, uint64 &below) {
    uint32 key = 0;
    below = 0;
    for (int shift = 30; shift >= 0; shift -= 3) {
        uint64 sums[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        for (int i = threadIdx.x; i < places; i += blockDim.x) {
            const uint32 mine = ordered(scores[i]);
            if (((uint64)mine ^ key) >> shift > 7) continue;
            const uint64 x = value(i, mine);
            const uint32 bin = mine >> shift & 7;
#pragma unroll
            for (int j = 0; j < 8; ++j) sums[j] += bin == j ? x : 0;
        }
        eight_together(sums);
        uint32 bin = 0;
        uint64 before = below, upto = below;
        bool going = true;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            if (going && sums[j]) {
                bin = j;
                before = upto;
                going = few(upto + sums[j]);
            }
            upto += sums[j];
        }
        below = before;
        key |= bin << shift;
    }
    return key;
}

// The most that `few` allows of values that are alike, less than all of them.
template <class Few> DEVICE uint64 most(uint64 below, uint64 each, uint64 count, Few few) {
    uint64 least = 0, limit = count - 1;
    while (least < limit) {
        const uint64 middle = (least + limit + 1) / 2;
        if (few(below + middle * each)) least = middle;
        else limit = middle - 1;
    }
    return least;
}

// Draw from scores by a uniform of [0, 1); `best` is the largest, and finite.
DEVICE int draw(const float *scores, int vocabulary, const float *rules, float best, double uniform) {
    uint32 least = 1 + ordered(-INFINITE), dropped = 0;  // the smallest key that is left, and how many of these are not
    const int top_k = (int)rules[TOP_K];
    uint64 below;
    if (top_k > 0 && top_k < vocabulary) {
        const uint64 others = vocabulary - top_k;
        const uint32 last = descend(
            scores, vocabulary, [](int, uint32) { return (uint64)1; }, [=](uint64 sum) { return sum <= others; }, below);
        least = last > least ? last : least;
    }
    const float limit = rules[DROPPED], share = rules[MIN_P];
    int from_ = 0;  // of the smallest keys those before are dropped
    if (limit > 0) {
        uint64 sum = 0;
        for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
            if (ordered(scores[i]) >= least) sum += weight(scores[i], best);
        const double total = (double)together<Sum>(sum);
        const auto few = [=](uint64 part) { return (float)((double)part / total) <= limit; };
        const uint32 kept = least;
        least = descend(
            scores, vocabulary,
            [=](int i, uint32 key) { return key >= kept ? weight(scores[i], best) : 0; }, few, below);
        uint64 alike = 0;
        for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) alike += ordered(scores[i]) == least;
        alike = together<Sum>(alike);
        dropped = (uint32)most(below, weight(unordered(least), best), alike, few);
        if (dropped)
            from_ = locate(vocabulary, dropped, [=](int i) { return (uint64)(ordered(scores[i]) == least); });
    }
    const auto likely = [=](int i) {
        const uint32 key = ordered(scores[i]);
        const bool left = key > least || (key == least && i >= from_);
        return left && expf(scores[i] - best) >= share ? weight(scores[i], best) : 0;
    };
    uint64 sum = 0;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) sum += likely(i);
    sum = together<Sum>(sum);
    const uint64 target = (uint64)(uniform * (double)sum);
    return locate(vocabulary, target < sum ? target : sum - 1, likely);
}

// Write the row's scores as the rules for all tokens make them.
template <class T> DEVICE void process(
    const T *logits, const T *conditional, float *scores, const int64 *history, int begin, int end, const float *rules,
    const int *forbidden, int forbids, int force, int fresh, int vocabulary
) {
    const float scale = rules[SCALE_OF_GUIDANCE], penalty = rules[PENALTY];
    const auto logit = [=](int i) {
        return conditional ? guide(from(logits[i]), from(conditional[i]), scale) : from(logits[i]);
    };
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x)
        scores[i] = force < 0 ? logit(i) : i == force ? 0.0f : -INFINITE;
    __syncthreads();
    if (penalty != 1 && force < 0)
        for (int i = begin + threadIdx.x; i < end; i += blockDim.x) {
            const int64 token = history[i];  // one that came twice is written twice, the same
            if (token < 0 || token >= vocabulary) continue;
            const float before = logit((int)token);
            scores[token] = before < 0 ? before * penalty : before / penalty;
        }
    __syncthreads();
    for (int j = threadIdx.x / 32; j < forbids; j += blockDim.x / 32) {  // low, high, since, until
        const int *rule = forbidden + 4 * j;
        const int high = rule[1] < vocabulary ? rule[1] : vocabulary;
        if (fresh >= rule[2] && fresh < rule[3])
            for (int i = (rule[0] > 0 ? rule[0] : 0) + threadIdx.x % 32; i < high; i += 32) scores[i] = -INFINITE;
    }
    __syncthreads();
}

DEVICE int choose(float *scores, int vocabulary, const float *rules, double uniform) {
    const float temperature = rules[TEMPERATURE];
    uint64 first = 0;
    for (int i = threadIdx.x; i < vocabulary; i += blockDim.x) {
        float score = scores[i];
        if (temperature != 0 && temperature != 1) scores[i] = score = score / temperature;
        const uint64 mine = (uint64)ordered(score) << 32 | (uint32)~i;
        first = first < mine ? mine : first;
    }
    first = together<Largest>(first);
    const int token = (int)~(uint32)first;
    const float best = scores[token];
    if (temperature == 0 || !(best - best == 0)) return token;
    return draw(scores, vocabulary, rules, best, uniform);
}

// grid: rows.
template <class T> DEVICE void choose_token(
    const T *logits, float *scores, int64 *history, const int *starts, const float *rules, const int *forbidden,
    const int *forced, const int *ends, const double *uniforms, int64 *tokens, int64 *positions, int *ended, int *state,
    int vocabulary, int copies, int capacity, int forbids, int forces, int endings, int slots
) {
    const int row = blockIdx.x, rows = gridDim.x, fresh = state[FRESH], place = state[LONGEST] + fresh;
    scores += (int64)row * vocabulary;
    history += (int64)row * capacity;
    logits += (int64)row * vocabulary;
    int token = state[PAD];
    if (!ended[row]) {
        process(
            logits, copies == 2 ? logits + (int64)rows * vocabulary : nullptr, scores, history, starts[row], place,
            rules, forbidden, forbids, fresh < forces ? forced[fresh] : -1, fresh, vocabulary
        );
        token = choose(scores, vocabulary, rules, uniforms[(int64)row * slots + fresh % slots]);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 0; i < endings; ++i)
            if (ends[i] == token) ended[row] = 1;
        if (place < capacity) history[place] = token;
        for (int copy = 0; copy < copies; ++copy) {
            tokens[copy * rows + row] = token;
            positions[copy * rows + row] += 1;
        }
    }
    advance(state, fresh + 1);
}

#define CHOOSE_TOKEN(T)                                                                                                \
    extern "C" __global__ void __launch_bounds__(512) choose_token_##T(                                                \
        const T *logits, float *scores, int64 *history, const int *starts, const float *rules, const int *forbidden,   \
        const int *forced, const int *ends, const double *uniforms, int64 *tokens, int64 *positions, int *ended,       \
        int *state, int vocabulary, int copies, int capacity, int forbids, int forces, int endings, int slots          \
    ) {                                                                                                                \
        choose_token(logits, scores, history, starts, rules, forbidden, forced, ends, uniforms, tokens, positions,     \
                     ended, state, vocabulary, copies, capacity, forbids, forces, endings, slots);                     \
    }

CHOOSE_TOKEN(float32)
CHOOSE_TOKEN(float16)
CHOOSE_TOKEN(bfloat16)
