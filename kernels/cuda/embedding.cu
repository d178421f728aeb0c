// Rows of a matrix by their numbers: gathered, as an embedding does it, and summed, which is its gradient.
//
//   gather   out[i, :] = weight[indices[i], :]
//   sum      out[row, :] = the sum of g[i, :] over all i with indices[i] == row
//
// Shapes: weight (gather) and out (sum) are (rows, columns); out (gather) and g (sum) are (n, columns);
// indices are (n,), 64-bit. All are C-contiguous. An index outside of [0, rows) gathers NaN, and is left out
// of sums, as is the row `left_out`, if there is one: its sum is 0.
//
//   gather_naive    a thread for each element
//   gather_vector   + 16 bytes a load, and two of them on their way, where rows are made of such
//   sum_naive       the definition: a thread for each element of out looks through all indices
//   sum_sorted      + the indices sorted before, so that what belongs to a row stands together: its segment
//   sum_chunks      + long segments cut into chunks, each for a block of its own, which leaves a partial sum
//   sum_segments      and these added up; short segments at once; 16 bytes and several rows of g at a time
//   sum_repeated    + nothing sorted: of the positions of a chunk, those with the same index are added up,
//   sum_found         and each block looks through what is left for its own rows of out
//
// The usual gradient of an embedding adds to out with atomics, in whatever order threads arrive, and rounds
// differently each time. Here every element of out is written once, by one thread, from sums whose order
// depends on the indices alone: the same bits in every run.
//
// Of 16 bits are the arrays of the gather, and of the last four kernels, whose sums are float32 (C).
//
// Arithmetic intensity: at most one addition for 4 bytes read. All are bound by memory, and the rungs change
// how much of it is asked for at a time. Naive sums read n indices for every element of out.

#include "rows.cuh"
#include "vector.cuh"

// ---- gather ----

// Grid: x = a thread for each element of out.
template <typename T>
__global__ void gather_naive(T* out, const T* weight, const long long* indices, long long n, long long rows,
                             long long columns) {
    const long long at = global_thread_index();
    if (at >= n * columns) return;
    const long long row = indices[at / columns];
    out[at] = row >= 0 && row < rows ? weight[row * columns + at % columns] : T(NAN);
}

// Rows that are made of whole vectors of 16 bytes, in arrays that begin at a multiple of 16. Threads side by
// side copy a row, two vectors at a time.
//
// Grid: x = the rows of out, blockDim.y of them in a block; blockDim.x threads walk along a row.
template <typename T>
__global__ void gather_vector(T* out, const T* weight, const long long* indices, long long n, long long rows,
                              long long columns) {
    constexpr int LENGTH = Vector<T>::LENGTH;
    const long long i = (long long)blockIdx.x * blockDim.y + threadIdx.y, step = blockDim.x * LENGTH;
    if (i >= n) return;
    const long long row = indices[i];
    const bool known = row >= 0 && row < rows;
    const auto load = [&](long long column) {
        Vector<T> vector;
        for (int k = 0; k < LENGTH; k++) vector.lane[k] = T(NAN);
        return known ? load_vector(weight + row * columns + column) : vector;
    };
    out += i * columns;
    long long column = threadIdx.x * LENGTH;
    for (; column + step < columns; column += 2 * step) {
        const Vector<T> first = load(column), second = load(column + step);
        store_vector(out + column, first);
        store_vector(out + column + step, second);
    }
    if (column < columns) store_vector(out + column, load(column));
}

// ---- sum ----

// Grid: x = a thread for each element of out.
template <typename T>
__global__ void sum_naive(T* out, const T* g, const long long* indices, long long n, long long rows,
                          long long columns, long long left_out) {
    const long long at = global_thread_index();
    if (at >= rows * columns) return;
    const long long row = at / columns, column = at % columns;
    T sum = 0;
    for (long long i = 0; i < n; i++)
        if (indices[i] == row && row != left_out) sum += g[i * columns + column];
    out[at] = sum;
}

// What belongs to a row: g[order[k], :] for k from starts[row] to starts[row + 1], in that order. Threads
// side by side do columns side by side. A long segment is walked by a single thread for each column.
//
// Grid: x = a thread for each element of out.
template <typename T>
__global__ void sum_sorted(T* out, const T* g, const long long* order, const long long* starts,
                           long long rows, long long columns, long long left_out) {
    const long long at = global_thread_index();
    if (at >= rows * columns) return;
    const long long row = at / columns, column = at % columns;
    T sum = 0;
    if (row != left_out)
        for (long long k = starts[row]; k < starts[row + 1]; k++) sum += g[order[k] * columns + column];
    out[at] = sum;
}

// `sum` and the vectors term(k) for k in [begin, end), in that order; IN_FLIGHT of them are loaded before the first is
// added.
constexpr int IN_FLIGHT = 4;

template <int W, typename C, typename Index, typename Term>
__device__ __forceinline__ Vector<C, W> sum_of(Vector<C, W> sum, Index begin, Index end, Term term) {
    using Terms = decltype(term(begin));
    const auto add = [&](const Terms& vector) {
#pragma unroll
        for (int i = 0; i < W; i++) sum.lane[i] += C(vector.lane[i]);
    };
    Index k = begin;
    for (; k + IN_FLIGHT <= end; k += IN_FLIGHT) {
        Terms terms[IN_FLIGHT];
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) terms[i] = term(k + i);
#pragma unroll
        for (int i = 0; i < IN_FLIGHT; i++) add(terms[i]);
    }
    for (; k < end; k++) add(term(k));
    return sum;
}

// Few words of a text make up most of it, so some segments are long. Those of more than `chunk` positions are
// cut where the positions are multiples of it. A chunk of the positions touches at most two of them: one that
// it begins in, and one that begins inside of it and goes on behind. Their sums there go to partial[chunk, 0]
// and partial[chunk, 1]. A thread has a vector of columns (WIDE), where rows are made of such, or one.
//
// Grid: x = the chunks, y = the columns or vectors, blockDim.x of them in a block. partial is (chunks, 2,
// columns).
template <typename T, typename C, bool WIDE>
__global__ void sum_chunks(C* partial, const T* g, const long long* order, const long long* sorted,
                           const long long* starts, long long n, long long rows, long long columns,
                           long long chunk, long long left_out) {
    constexpr int W = WIDTH_OF<T, WIDE>;
    const long long begin = blockIdx.x * chunk, end = begin + chunk < n ? begin + chunk : n;
    const long long column = ((long long)blockIdx.y * blockDim.x + threadIdx.x) * W;
    if (column >= columns) return;
    const long long first = sorted[begin], last = sorted[end - 1];  // rows, or `rows` for what is left out
    const auto is_long = [&](long long row) {
        return row < rows && row != left_out && starts[row + 1] - starts[row] > chunk;
    };
    const auto term = [&](long long k) { return load_vector<W>(g + order[k] * columns + column); };
    partial += blockIdx.x * 2 * columns + column;
    if (is_long(first)) {
        const long long stop = starts[first + 1] < end ? starts[first + 1] : end;
        store_vector(partial, sum_of<W>(Vector<C, W>{}, begin, stop, term));
    }
    if (last != first && is_long(last))
        store_vector(partial + columns, sum_of<W>(Vector<C, W>{}, starts[last], end, term));
}

// Grid: x = the rows of out, blockDim.y of them in a block; blockDim.x threads walk along the columns.
template <typename T, typename C, bool WIDE>
__global__ void sum_segments(T* out, const C* partial, const T* g, const long long* order,
                             const long long* starts, long long rows, long long columns, long long chunk,
                             long long left_out) {
    constexpr int W = WIDTH_OF<T, WIDE>;
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const long long begin = starts[row], end = starts[row + 1];
    const long long first = begin / chunk, chunks = (end + chunk - 1) / chunk;
    const bool inside = begin > first * chunk;  // the segment begins inside of its first chunk
    for (long long column = threadIdx.x * W; column < columns; column += blockDim.x * W) {
        Vector<C, W> sum{};
        if (row == left_out) {
            // stays 0
        } else if (end - begin > chunk) {
            sum = load_vector<W>(partial + (2 * first + inside) * columns + column);
            const auto term = [&](long long k) { return load_vector<W>(partial + 2 * k * columns + column); };
            sum = sum_of<W>(sum, first + 1, chunks, term);
        } else {
            const auto term = [&](long long k) { return load_vector<W>(g + order[k] * columns + column); };
            sum = sum_of<W>(sum, begin, end, term);
        }
        store_vector(out + row * columns + column, converted<T>(sum));
    }
}

// ---- sum without sorting ----
//
// A row of out needs the positions that point to it. The rows are dealt out to the blocks, each of which reads all n
// indices, from the L2 cache but for the first: n 8 bytes for each of them, a fraction of what a block of 64 rows
// writes where rows are long. What is read must be evenly spread, though the first rows of a vocabulary are those of
// the most frequent words: neighbours go to different blocks; and where n is large, equal indices within a chunk of
// the positions are summed before, so that a row has at most one term of each chunk.

constexpr int THREADS = 256;       // in a block of both
constexpr int MAX_CHUNK = THREADS;  // positions; a thread for each
constexpr int NONE = -1;

// partial[i, :] is the sum of g over the positions of i's chunk with the same index as i, where i is the first of
// several. leaders[i] is then rows + indices[i]; indices[i], where i is the only one; -1 where it is not the first, or
// is left out.
//
// Grid: x = the chunks, y = the columns or vectors, `lanes` of them in a block. partial is (n, columns).
template <typename T, typename C, bool WIDE>
__global__ void __launch_bounds__(THREADS) sum_repeated(
    C* partial, long long* leaders, const T* g, const long long* indices, long long n, long long rows,
    long long columns, long long left_out, int chunk, int lanes
) {
    constexpr int W = WIDTH_OF<T, WIDE>;
    __shared__ long long row_of[MAX_CHUNK];
    __shared__ int next[MAX_CHUNK];  // the position in the chunk that has the same row
    __shared__ bool is_first[MAX_CHUNK];
    const long long begin = (long long)blockIdx.x * chunk;
    const int here = int(n - begin < chunk ? n - begin : chunk), mine = threadIdx.x;
    if (mine < here) {
        const long long row = indices[begin + mine];
        row_of[mine] = row >= 0 && row < rows && row != left_out ? row : NONE;
    }
    __syncthreads();  // all rows are known
    if (mine < here) {
        const long long row = row_of[mine];
        bool first = row != NONE;
        int following = NONE;
#pragma unroll 8
        for (int other = here - 1; other >= 0; other--) {
            const bool same = row_of[other] == row;
            if (same && other > mine) following = other;
            if (same && other < mine) first = false;
        }
        next[mine] = following;
        is_first[mine] = first;
        if (blockIdx.y == 0) leaders[begin + mine] = first ? row + (following == NONE ? 0 : rows) : NONE;
    }
    __syncthreads();  // each position knows the next one
    const long long column = ((long long)blockIdx.y * lanes + threadIdx.x % lanes) * W;
    if (column >= columns) return;
    for (int leader = threadIdx.x / lanes; leader < here; leader += THREADS / lanes) {
        if (!is_first[leader] || next[leader] == NONE) continue;
        Vector<C, W> sum{};
        for (int at = leader; at != NONE;) {
            Vector<T, W> terms[IN_FLIGHT] = {};
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++)
                if (at != NONE) {
                    terms[i] = load_vector<W>(g + (begin + at) * columns + column);
                    at = next[at];
                }
#pragma unroll
            for (int i = 0; i < IN_FLIGHT; i++)
#pragma unroll
                for (int k = 0; k < W; k++) sum.lane[k] += C(terms[i].lane[k]);
        }
        store_vector(partial + (begin + leader) * columns + column, sum);
    }
}

// With one position to a chunk, `leaders` are the indices themselves, and nothing is in partial. A block's rows have a
// place for each chunk in shared memory, which takes what is found there; these are then moved together.
//
// Grid: x = 2^row_bits blocks, of which block b has the rows b, b + 2^row_bits, ...; y = the columns or vectors,
// `lanes` of them in a block. A chunk is 2^chunk_bits positions, and there are `chunks` of them.
constexpr int PLACES = 8192;  // 32 KB
constexpr int LOOKS = 8;      // indices that a thread asks for at a time

template <typename T, typename C, bool WIDE>
__global__ void __launch_bounds__(THREADS) sum_found(
    T* out, const C* partial, const T* g, const long long* leaders, long long n, long long rows, long long columns,
    long long left_out, int chunk_bits, int chunks, int row_bits, int lanes
) {
    constexpr int W = WIDTH_OF<T, WIDE>;
    // For each row how many places are taken, then the places: twice a position, plus 1 if its sum is in partial.
    __shared__ int places[PLACES];
    const int stride = 1 + chunks;
    const int mine = blockIdx.x < rows ? int((rows - 1 - blockIdx.x) >> row_bits) + 1 : 0;
    for (int i = threadIdx.x; i < mine * stride; i += THREADS) places[i] = NONE;
    __syncthreads();  // all places are free
    for (long long first = threadIdx.x; first < n; first += THREADS * LOOKS) {
        long long seen[LOOKS];
#pragma unroll
        for (int k = 0; k < LOOKS; k++) seen[k] = first + k * THREADS < n ? leaders[first + k * THREADS] : NONE;
#pragma unroll
        for (int k = 0; k < LOOKS; k++) {
            const bool summed = chunk_bits > 0 && seen[k] >= rows;
            const long long row = summed ? seen[k] - rows : seen[k], i = first + k * THREADS;
            if (row < 0 || row >= rows || row == left_out || (row & (gridDim.x - 1)) != blockIdx.x) continue;
            places[(row >> row_bits) * stride + 1 + (i >> chunk_bits)] = int(2 * i + summed);
        }
    }
    __syncthreads();  // all of the block's rows are found
    const int lane = threadIdx.x % WARP;
    for (int r = threadIdx.x / WARP; r < mine; r += THREADS / WARP) {
        int* count = places + r * stride;
        int taken = 0;
        for (int first = 0; first < chunks; first += WARP) {
            const int place = first + lane < chunks ? count[1 + first + lane] : NONE;
            const unsigned int found = __ballot_sync(ALL_LANES, place != NONE);
            __syncwarp();  // all have read what is now overwritten
            if (place != NONE) count[1 + taken + __popc(found & ((1u << lane) - 1))] = place;
            taken += __popc(found);
        }
        if (lane == 0) *count = taken;
    }
    __syncthreads();  // what each row needs stands together
    const long long column = ((long long)blockIdx.y * lanes + threadIdx.x % lanes) * W;
    if (column >= columns) return;
    for (int r = threadIdx.x / lanes; r < mine; r += THREADS / lanes) {
        const int* count = places + r * stride;
        const auto term = [&](int k) {
            const int place = count[1 + k];
            const long long at = (long long)(place / 2) * columns + column;
            if constexpr (IS_SAME<T, C>)
                return load_vector<W>((place % 2 ? partial : g) + at);
            else
                return place % 2 ? load_vector<W>(partial + at) : converted<C>(load_vector<W>(g + at));
        };
        const Vector<C, W> sum = sum_of<W>(Vector<C, W>{}, 0, *count, term);
        store_vector(out + (blockIdx.x + ((long long)r << row_bits)) * columns + column, converted<T>(sum));
    }
}
