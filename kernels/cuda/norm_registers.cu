// Layer norm and group norm with their gradients, for rows that the registers of a block hold: norm.cu's
// formulas and shapes.
//
//   norm_registers              a row is read once, 16 bytes a load, all loads before the first use; the walks
//                               of norm.cu are over registers. A warp for each row, a block for a longer one
//   layer_norm_grad_registers   + dx and a share of dweight and dbias in one walk: a block takes many rows,
//                               one after the other, and has a sum for each column in registers
//   group_norm_grad_registers   + dx in one walk, with the sums over each plane (one channel of one sample)
//
// The last two leave partial sums for dweight and dbias, which channel_sums.cu adds up.
//
// Norm.cu reads a row three times, which come from the caches, if not from memory: but each walk waits for
// the one before it, and little is on its way meanwhile. And dweight and dbias cost one more reading of grad
// and x. Here forward moves the 8 bytes of an element, the gradients 12, and nothing else to speak of.
//
// Registers: a thread has up to VECTORS vectors of a row, 32 floats, and as many again for the gradient of
// group norm; for that of layer norm GRAD_VECTORS of weight and of both sums, and of grad and of x for two
// rows. A vector is 16 bytes (WIDE), or one element where rows do not start at a multiple of 16.
//
// x, y, grad and dx (T) may be of 16 bits: twice as many elements in a vector, and half as many vectors of
// them. All else (C) is then float32, as are the elements in registers.
//
// The order of all additions depends on the shape alone. Arithmetic intensity: as norm.cu, 1 a byte.

#include "norm.cuh"
#include "vector.cuh"

// Of a row, for each thread; and of a row in layer norm's gradient.
template <typename T, bool WIDE>
constexpr int VECTORS = WIDE && sizeof(T) == 2 ? 4 : 8;
template <typename T, bool WIDE>
constexpr int GRAD_VECTORS = VECTORS<T, WIDE> / 4;

// The vector at `from`, to compute with, or zeros.
template <int WIDTH, typename T>
__device__ __forceinline__ Vector<Computed<T>, WIDTH> load_if(bool there, const T* from) {
    return there ? converted<Computed<T>>(load_vector<WIDTH>(from)) : Vector<Computed<T>, WIDTH>{};
}

// The sum over a vector's lanes.
template <typename T, int WIDTH>
__device__ __forceinline__ T sum_of(const Vector<T, WIDTH>& vector) {
    T sum = vector.lane[0];
#pragma unroll
    for (int i = 1; i < WIDTH; i++) sum += vector.lane[i];
    return sum;
}

// The weight and the bias of a thread's vectors in a row, one vector after the other from column `i` on.
template <bool PER_CHANNEL, typename T, int WIDTH>
struct Affine {
    const T* weight;
    const T* bias;
    int i;

    __device__ __forceinline__ Affine(const T* weight, const T* bias, long long, int i, Layout)
        : weight(weight), bias(bias), i(i) {}
    __device__ __forceinline__ void advance(int step) { i += step; }
    __device__ __forceinline__ void apply(Vector<T, WIDTH>& y) const {
        Vector<T, WIDTH> w, b{};
        if (weight) w = load_vector<WIDTH>(weight + i);
        if (bias) b = load_vector<WIDTH>(bias + i);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) y.lane[k] = (weight ? y.lane[k] * w.lane[k] : y.lane[k]) + b.lane[k];
    }
};

// Where a vector lies in one channel, these are looked up with the first vector and where another channel begins: no
// store waits for a division and two loads.
template <typename T, int WIDTH>
struct Affine<true, T, WIDTH> {
    const T* weight;
    const T* bias;
    unsigned channels, area, channel, in_channel;
    T w, b;

    __device__ __forceinline__ Affine(const T* weight, const T* bias, long long row, int i, Layout layout)
        : weight(weight), bias(bias), channels(unsigned(layout.channels)),
          area(layout.area ? unsigned(layout.area) : 1), channel(0), in_channel(0) {  // not 0, to divide by
        const long long first = row % layout.groups * layout.channels;
        if (weight) this->weight += first;
        if (bias) this->bias += first;
        look_up(0);
        advance(i);
    }

    // The elements from channel `c` on; past the row's end, nothing.
    __device__ __forceinline__ void look_up(unsigned c) {
        if (c >= channels) return;
        w = value_or(weight, c, T(1));
        b = value_or(bias, c, T(0));
    }

    __device__ __forceinline__ void advance(int step) {
        in_channel += step;
        if (in_channel < area) return;
        channel += in_channel / area;
        in_channel %= area;
        look_up(channel);
    }

    __device__ __forceinline__ void apply(Vector<T, WIDTH>& y) const {
        if (in_channel + WIDTH <= area) {
#pragma unroll
            for (int k = 0; k < WIDTH; k++) y.lane[k] = y.lane[k] * w + b;
            return;
        }
        Affine here = *this;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            y.lane[k] = y.lane[k] * here.w + here.b;
            here.advance(1);
        }
    }
};

// Rows of up to blockDim.x * VECTORS vectors.
//
// Grid: x = the rows, blockDim.y of them in a block; blockDim.x is 32, or more for a single row.
template <typename C, typename T, bool PER_CHANNEL, bool WIDE>
__global__ void __launch_bounds__(MAX_THREADS, FEWEST_BLOCKS<C>) norm_registers(
    T* y, C* mean, C* rstd, const T* x, const C* weight, const C* bias, long long rows, long long columns,
    Layout layout, C eps
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>, COUNT = VECTORS<T, WIDE>;
    const long long row = (long long)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;  // the whole warp
    const int first = threadIdx.x * WIDTH, step = blockDim.x * WIDTH, end = int(columns);
    x += row * columns;
    y += row * columns;
    Vector<C, WIDTH> part[COUNT], sums{}, deviations{}, squares{};
#pragma unroll
    for (int k = 0; k < COUNT; k++) part[k] = load_if<WIDTH>(first + k * step < end, x + first + k * step);
#pragma unroll
    for (int k = 0; k < COUNT; k++)
#pragma unroll
        for (int i = 0; i < WIDTH; i++) sums.lane[i] += part[k].lane[i];
    Affine<PER_CHANNEL, C, WIDTH> affine(weight, bias, row, first, layout);
    C sum = sum_of(sums), none = 0;
    sum_over_row(sum, none, 0);
    const C about = sum / C(columns);
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        if (first + k * step < end)
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                const C deviation = part[k].lane[i] - about;
                deviations.lane[i] += deviation;
                squares.lane[i] += deviation * deviation;
            }
    C off = sum_of(deviations), square = sum_of(squares);
    sum_over_row(off, square, 1);
    off /= C(columns);
    const C variance = square / C(columns) - off * off;
    const C m = about + off, r = 1 / sqrt((variance < 0 ? C(0) : variance) + eps);
    if (threadIdx.x == 0) {
        mean[row] = m;
        rstd[row] = r;
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const int i = first + k * step;
        if (i >= end) break;
#pragma unroll
        for (int l = 0; l < WIDTH; l++) part[k].lane[l] = (part[k].lane[l] - m) * r;
        affine.apply(part[k]);
        affine.advance(step);
        store_vector(y + i, converted<T>(part[k]));
    }
}

// ---- the gradients of layer norm ----

// This thread's part of a row of grad and of x, as they are stored, with the row's statistics.
template <typename C, typename T, int WIDTH, int COUNT>
struct GradRow {
    Vector<T, WIDTH> grad[COUNT], x[COUNT];
    C mean, rstd;
};

// Rows of up to blockDim.x * GRAD_VECTORS vectors. A block, or each of the GRAD_ROWS warps of a block of short rows,
// takes one of every so many rows as there are in the grid at a time, and a block leaves its shares of dweight and dbias
// in row blockIdx.x of the partial sums. The next row is loaded before a thread computes with this one, so that memory
// is never idle; to convert it there would be to wait for it.
//
// Grid: x = the partial sums, at most as many as blocks have rows; blockDim.y = 1 or, if SHORT, GRAD_ROWS, and
// blockDim.x = 32.
constexpr int GRAD_ROWS = 4;

template <typename C, typename T, bool WIDE, bool SHORT>
__global__ void __launch_bounds__(MAX_THREADS) layer_norm_grad_registers(
    T* dx, C* partial_dweight, C* partial_dbias, const T* grad, const T* x, const C* mean, const C* rstd,
    const C* weight, long long rows, long long columns
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>, COUNT = GRAD_VECTORS<T, WIDE>;
    const int first = threadIdx.x * WIDTH, step = blockDim.x * WIDTH, end = int(columns);
    Vector<C, WIDTH> w[COUNT], dweight[COUNT] = {}, dbias[COUNT] = {};
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) w[k].lane[i] = 1;
        if (weight && first + k * step < end) w[k] = load_vector<WIDTH>(weight + first + k * step);
    }
    const auto load = [&](long long row) {
        GradRow<C, T, WIDTH, COUNT> loaded;
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            // Past the row's end its last vector is loaded again, and counts as zeros.
            const long long at = row * columns + min(first + k * step, end - WIDTH);
            loaded.grad[k] = load_vector<WIDTH>(grad + at);
            loaded.x[k] = load_vector<WIDTH>(x + at);
        }
        loaded.mean = mean[row];
        loaded.rstd = rstd[row];
        return loaded;
    };
    const long long first_row = SHORT ? (long long)blockIdx.x * GRAD_ROWS + threadIdx.y : blockIdx.x;
    const long long at_a_time = SHORT ? (long long)gridDim.x * GRAD_ROWS : gridDim.x;
    GradRow<C, T, WIDTH, COUNT> next = load(SHORT ? min(first_row, rows - 1) : first_row);
    int turn = 0;
    for (long long row = first_row; row < rows; row += at_a_time, turn ^= 1) {
        const GradRow<C, T, WIDTH, COUNT> now = next;
        next = load(min(row + at_a_time, rows - 1));  // behind the last row that one again: no branch, which would wait
        Vector<C, WIDTH> scaled[COUNT], normal[COUNT];
        C sum = 0, product = 0;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
#pragma unroll
            for (int i = 0; i < WIDTH; i++) {
                const C g = first + k * step < end ? C(now.grad[k].lane[i]) : C(0);
                const C a = rounded_product(g, w[k].lane[i]), n = (C(now.x[k].lane[i]) - now.mean) * now.rstd;
                dbias[k].lane[i] += g;
                dweight[k].lane[i] += g * n;
                sum += a;
                product += a * n;
                scaled[k].lane[i] = a;
                normal[k].lane[i] = n;
            }
        sum_over_row(sum, product, turn);
        sum /= C(columns);
        product /= C(columns);
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            if (first + k * step >= end) break;
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                scaled[k].lane[i] = (scaled[k].lane[i] - sum - normal[k].lane[i] * product) * now.rstd;
            store_vector(dx + row * columns + first + k * step, converted<T>(scaled[k]));
        }
    }
    if constexpr (SHORT) {
        __shared__ Vector<C, WIDTH> of_warp[2][GRAD_ROWS][COUNT][WARP];
#pragma unroll
        for (int k = 0; k < COUNT; k++) {
            of_warp[0][threadIdx.y][k][threadIdx.x] = dweight[k];
            of_warp[1][threadIdx.y][k][threadIdx.x] = dbias[k];
        }
        __syncthreads();  // all warps have left theirs
        if (threadIdx.y > 0) return;
#pragma unroll
        for (int k = 0; k < COUNT; k++)
#pragma unroll
            for (int y = 1; y < GRAD_ROWS; y++)
#pragma unroll
                for (int i = 0; i < WIDTH; i++) {
                    dweight[k].lane[i] += of_warp[0][y][k][threadIdx.x].lane[i];
                    dbias[k].lane[i] += of_warp[1][y][k][threadIdx.x].lane[i];
                }
    }
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        if (first + k * step >= end) break;
        const long long at = blockIdx.x * columns + first + k * step;
        store_vector(partial_dweight + at, dweight[k]);
        store_vector(partial_dbias + at, dbias[k]);
    }
}

// ---- the gradients of group norm ----
//
// A row is `channels` planes of `area` elements. It is cut into pieces of a vector for each lane of a warp,
// none of them in two planes: a warp has COUNT pieces, one after the other, and so few planes.

// A piece: which one, of which plane.
struct Piece {
    int of_plane;  // how many a plane has
    int channel, number;

    __device__ __forceinline__ Piece(int piece, int of_plane)
        : of_plane(of_plane), channel(piece / of_plane), number(piece - channel * of_plane) {}

    // On to the next one; tells whether that is in another plane.
    __device__ __forceinline__ bool advance() {
        if (++number < of_plane) return false;
        number = 0;
        channel++;
        return true;
    }
};

// Rows of up to blockDim.x / 32 * COUNT pieces. The sums over a plane go to the sums of the planes, which
// are (rows, channels): over their samples, these add up to dweight and dbias.
//
// Grid: x = the rows.
template <typename C, typename T, bool WIDE>
__global__ void __launch_bounds__(MAX_THREADS) group_norm_grad_registers(
    T* dx, C* plane_dweight, C* plane_dbias, const T* grad, const T* x, const C* mean, const C* rstd,
    const C* weight, long long groups, int channels, int area
) {
    constexpr int WIDTH = WIDTH_OF<T, WIDE>, COUNT = VECTORS<T, WIDE>;
    __shared__ C piece_dweight[MAX_WARPS * COUNT];  // at the last piece of a plane or a warp
    __shared__ C piece_dbias[MAX_WARPS * COUNT];
    const int lane = threadIdx.x % WARP, first = threadIdx.x / WARP * COUNT;
    const int pieces = (area + WARP * WIDTH - 1) / (WARP * WIDTH);  // of a plane
    const long long row = blockIdx.x, start = row * channels * area;
    const C m = mean[row], r = rstd[row];
    if (weight) weight += row % groups * channels;

    const Piece first_piece(first, pieces);
    Vector<C, WIDTH> g[COUNT], normal[COUNT];
    const auto place = [&](const Piece& piece) {  // of this lane's vector; -1: nothing
        const int i = (piece.number * WARP + lane) * WIDTH;
        return piece.channel < channels && i < area ? piece.channel * area + i : -1;
    };
    Piece piece = first_piece;
#pragma unroll
    for (int k = 0; k < COUNT; k++, piece.advance()) {
        const int at = place(piece);
        g[k] = load_if<WIDTH>(at >= 0, grad + start + at);
        normal[k] = load_if<WIDTH>(at >= 0, x + start + at);
    }
    const auto weight_of = [&](int channel) {
        return weight && channel < channels ? weight[channel] : C(1);
    };
    C w = weight_of(first_piece.channel);
    C dweight = 0, dbias = 0;  // of the pieces of one plane, up to its last one or the warp's
    piece = first_piece;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
#pragma unroll
        for (int i = 0; i < WIDTH; i++) {
            normal[k].lane[i] = (normal[k].lane[i] - m) * r;
            dweight += g[k].lane[i] * normal[k].lane[i];
            dbias += g[k].lane[i];
        }
        if (piece.advance() || k + 1 == COUNT) {  // the whole warp
            dweight = across_warp<SUM>(dweight);
            dbias = across_warp<SUM>(dbias);
            if (lane == 0) {
                piece_dweight[first + k] = dweight;
                piece_dbias[first + k] = dbias;
            }
            dweight = dbias = 0;
        }
    }
    __syncthreads();  // all warps have left their sums
    C sum = 0, product = 0;
    for (int c = threadIdx.x; c < channels; c += blockDim.x) {
        const int end = (c + 1) * pieces;
        for (int next = c * pieces; next < end;) {
            next = min(next / COUNT * COUNT + COUNT, end);
            dweight += piece_dweight[next - 1];
            dbias += piece_dbias[next - 1];
        }
        plane_dweight[row * channels + c] = dweight;
        plane_dbias[row * channels + c] = dbias;
        sum += weight_of(c) * dbias;
        product += weight_of(c) * dweight;
        dweight = dbias = 0;
    }
    sum_over_row(sum, product, 0);
    sum /= C(channels * area);
    product /= C(channels * area);
    piece = first_piece;
#pragma unroll
    for (int k = 0; k < COUNT; k++) {
        const int at = place(piece);
        if (at >= 0) {
#pragma unroll
            for (int i = 0; i < WIDTH; i++)
                g[k].lane[i] = (rounded_product(g[k].lane[i], w) - sum - normal[k].lane[i] * product) * r;
            store_vector(dx + start + at, converted<T>(g[k]));
        }
        if (piece.advance()) w = weight_of(piece.channel);
    }
}
