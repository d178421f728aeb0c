// The cells of recurrent layers: what is left of a step, forward or backward, when its product is there.
//
// Shapes: states are (steps, rows, H), rows being the batch's, states before the first step (rows, H); what belongs
// to gates has GATES times H columns, one gate beside the other. All are C-contiguous. A thread owns an element of
// the state. It reads what all steps add once, in load_bias(). For a step at place `at` it first calls load(), which
// asks memory for what the step needs beside the product, and computes nothing, so as not to wait: the answers come
// while the product is made, advance() makes the step of them, and store() leaves its results in memory. A gradient's
// `before` is the place of the step that came before in time, or -1.
//
// `carried` is what an element takes with it from step to step outside of the product: the cell's state, that of a
// gru, and their gradients. It is a sum over the steps, to which 16 bits would soon add nothing more: where arrays
// (T) are of 16 bits, it is of float32 (C), as sums and functions are. What later kernels read, and the operand of
// the next product, is rounded once, where it is stored.
#pragma once

#include "common.cuh"

// An element of the state, and where arrays hold what belongs to it. For arrays without steps, `at` is 0.
struct Element {
    long long row, rows;
    int unit, H;

    __device__ __forceinline__ long long state(long long at = 0) const { return (at * rows + row) * H + unit; }

    // The first gate of GATES; the others follow, each H elements behind the one before.
    template <int GATES>
    __device__ __forceinline__ long long gate(long long at) const {
        return (at * rows + row) * GATES * H + unit;
    }
};

// ---- long short-term memory -------------------------------------------------------------------------------------
//
// Of the gates i, f, g and o: c = f c' + i g and h = o tanh(c), from c' and h' of the step before.

// `gates` holds what the inputs contribute to the pre-activations, and then the gates. `carried` is c.
template <typename T>
struct Lstm {
    using C = Computed<T>;
    static constexpr int GATES = 4;
    T *y, *cells, *gates;
    const T *h0, *c0, *bias;
    C of_bias[4], z[4];  // z: what the inputs contribute, and then gates
    T state;

    __device__ __forceinline__ void load_bias(const Element& element) {
#pragma unroll
        for (int g = 0; g < GATES; g++) of_bias[g] = C(value_or(bias, g * element.H + element.unit, T(0)));
    }

    __device__ __forceinline__ C start(const Element& element) const { return C(c0[element.state()]); }

    __device__ __forceinline__ void load(const Element& element, long long at) {
        const T* const own = gates + element.gate<4>(at);
#pragma unroll
        for (int g = 0; g < 4; g++) z[g] = C(own[g * element.H]);
    }

    // Returns the new state, which the next step multiplies.
    __device__ __forceinline__ T advance(C& c, const C (&product)[4]) {
        C sum[4];
#pragma unroll
        for (int k = 0; k < 4; k++) sum[k] = z[k] + of_bias[k] + product[k];
        const C i = logistic(sum[0]), f = logistic(sum[1]), g = tanh(sum[2]), o = logistic(sum[3]);
        c = f * c + i * g;
        z[0] = i, z[1] = f, z[2] = g, z[3] = o;
        return state = T(o * tanh(c));
    }

    __device__ __forceinline__ void store(const Element& element, long long at, C c) const {
        T* const own = gates + element.gate<4>(at);
#pragma unroll
        for (int g = 0; g < 4; g++) own[g * element.H] = T(z[g]);
        cells[element.state(at)] = T(c);
        y[element.state(at)] = state;
    }
};

// dz, the gradient of the pre-activations. `carried` is that of the cell's state.
template <typename T>
struct LstmGrad {
    using C = Computed<T>;
    static constexpr int GATES = 4;
    static constexpr bool GIVES_FIRST = true;  // the gradients of the states before the first step
    T *dz, *dh0, *dc0;
    const T *c0, *cells, *gates, *grad_y, *grad_c;
    C dh, dc_outside, c, c_before, gate[4];

    __device__ __forceinline__ void load(const Element& element, long long at, long long before) {
        const long long here = element.state(at), first = element.gate<4>(at);
        dh = C(grad_y[here]);
        dc_outside = C(value_or(grad_c, here, T(0)));
        c = C(cells[here]);
        c_before = C(before < 0 ? c0[element.state()] : cells[element.state(before)]);
#pragma unroll
        for (int g = 0; g < 4; g++) gate[g] = C(gates[first + g * element.H]);
    }

    // From what the step after sends back. `operand` is what the step before will multiply.
    __device__ __forceinline__ void advance(C& dc, C sent_back, T (&operand)[4]) {
        const C i = gate[0], f = gate[1], g = gate[2], o = gate[3], tanh_c = tanh(c), of_h = dh + sent_back;
        dc += dc_outside;
        dc += of_h * o * (1 - tanh_c * tanh_c);
        operand[0] = T(dc * g * i * (1 - i));
        operand[1] = T(dc * c_before * f * (1 - f));
        operand[2] = T(dc * i * (1 - g * g));
        operand[3] = T(of_h * tanh_c * o * (1 - o));
        dc *= f;
    }

    __device__ __forceinline__ void store(const Element& element, long long at, const T (&operand)[4]) const {
        T* const own = dz + element.gate<4>(at);
#pragma unroll
        for (int k = 0; k < 4; k++) own[k * element.H] = operand[k];
    }

    __device__ __forceinline__ void finish(const Element& element, C dc, C sent_back) const {
        dh0[element.state()] = T(sent_back);
        dc0[element.state()] = T(dc);
    }
};

// ---- gated recurrent unit ---------------------------------------------------------------------------------------
//
// Of a, which the inputs contribute, and b = h' W' + bias: r and u are logistic(a + b) of the first two thirds; of
// the last, c = b and n = tanh(a + r c). Then h = (1 - u) n + u h'. gates (steps, 4, rows, H) are r, u, n and c.

// `carried` is h.
template <typename T>
struct Gru {
    using C = Computed<T>;
    static constexpr int GATES = 3;
    T *y, *gates;
    const T *a, *h0, *bias;
    C of_bias[3], z[3], gate[4];
    T state;

    __device__ __forceinline__ void load_bias(const Element& element) {
#pragma unroll
        for (int g = 0; g < GATES; g++) of_bias[g] = C(value_or(bias, g * element.H + element.unit, T(0)));
    }

    __device__ __forceinline__ C start(const Element& element) const { return C(h0[element.state()]); }

    __device__ __forceinline__ void load(const Element& element, long long at) {
#pragma unroll
        for (int g = 0; g < 3; g++) z[g] = C(a[element.gate<3>(at) + g * element.H]);
    }

    // Returns the new state, which the next step multiplies.
    __device__ __forceinline__ T advance(C& h, const C (&b)[3]) {
        const C r = logistic(z[0] + (b[0] + of_bias[0])), u = logistic(z[1] + (b[1] + of_bias[1]));
        const C c = b[2] + of_bias[2], n = tanh(z[2] + r * c);
        h = n + u * (h - n);
        gate[0] = r, gate[1] = u, gate[2] = n, gate[3] = c;
        return state = T(h);
    }

    __device__ __forceinline__ void store(const Element& element, long long at, C) const {
#pragma unroll
        for (int g = 0; g < 4; g++) gates[element.state(4 * at + g)] = T(gate[g]);
        y[element.state(at)] = state;
    }
};

// da and db, the gradients of a and of b. `carried` is the part of the state's gradient that does not go through b.
template <typename T>
struct GruGrad {
    using C = Computed<T>;
    static constexpr int GATES = 3;
    static constexpr bool GIVES_FIRST = true;
    T *da, *dz, *dh0;  // dz is db: what is multiplied
    const T *h0, *y, *gates, *grad_y;
    C dh_outside, h, gate[4];
    T last_of_a;  // the last third of da, in which it is not db

    __device__ __forceinline__ void load(const Element& element, long long at, long long before) {
        dh_outside = C(grad_y[element.state(at)]);
        h = C(before < 0 ? h0[element.state()] : y[element.state(before)]);
#pragma unroll
        for (int g = 0; g < 4; g++) gate[g] = C(gates[element.state(4 * at + g)]);
    }

    // From what the step after sends back. `operand` is what the step before will multiply.
    __device__ __forceinline__ void advance(C& dh, C sent_back, T (&operand)[3]) {
        const C r = gate[0], u = gate[1], n = gate[2], c = gate[3];
        dh += dh_outside;
        dh += sent_back;
        const C of_n = dh * (1 - u) * (1 - n * n), of_r = of_n * c * r * (1 - r);
        const C of_u = dh * (h - n) * u * (1 - u);
        operand[0] = T(of_r);
        operand[1] = T(of_u);
        operand[2] = T(of_n * r);
        last_of_a = T(of_n);
        dh *= u;
    }

    __device__ __forceinline__ void store(const Element& element, long long at, const T (&operand)[3]) const {
        const long long own = element.gate<3>(at);
        const int H = element.H;
        da[own] = dz[own] = operand[0];
        da[own + H] = dz[own + H] = operand[1];
        da[own + 2 * H] = last_of_a;
        dz[own + 2 * H] = operand[2];
    }

    __device__ __forceinline__ void finish(const Element& element, C dh, C sent_back) const {
        dh0[element.state()] = T(dh + sent_back);
    }
};

// ---- plain recurrent layer --------------------------------------------------------------------------------------
//
// y = tanh(z + y' W'), or max(0, ...) in its place: RELU. Nothing is carried.

template <typename T, bool RELU>
struct Rnn {
    using C = Computed<T>;
    static constexpr int GATES = 1;
    T* y;
    const T *z, *h0;
    C x;
    T state;

    __device__ __forceinline__ void load_bias(const Element&) {}  // z has it

    __device__ __forceinline__ C start(const Element&) const { return 0; }

    __device__ __forceinline__ void load(const Element& element, long long at) { x = C(z[element.state(at)]); }

    // Returns the new state, which the next step multiplies.
    __device__ __forceinline__ T advance(C&, const C (&product)[1]) {
        const C sum = x + product[0];
        return state = T(RELU ? relu_if(true, sum) : tanh(sum));
    }

    __device__ __forceinline__ void store(const Element& element, long long at, C) const {
        y[element.state(at)] = state;
    }
};

template <typename T, bool RELU>
struct RnnGrad {
    using C = Computed<T>;
    static constexpr int GATES = 1;
    static constexpr bool GIVES_FIRST = false;
    T* dz;
    const T *grad_y, *y;
    C dh, state;

    __device__ __forceinline__ void load(const Element& element, long long at, long long) {
        dh = C(grad_y[element.state(at)]);
        state = C(y[element.state(at)]);
    }

    // From what the step after sends back. `operand` is what the step before will multiply.
    __device__ __forceinline__ void advance(C&, C sent_back, T (&operand)[1]) {
        const C of_y = dh + sent_back;
        if constexpr (RELU)
            operand[0] = T(state <= 0 ? 0 : of_y);
        else
            operand[0] = T(of_y * (1 - state * state));
    }

    __device__ __forceinline__ void store(const Element& element, long long at, const T (&operand)[1]) const {
        dz[element.state(at)] = operand[0];
    }
};
