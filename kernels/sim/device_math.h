// Device functions that C++ does not have under CUDA's names. The fast variants (__expf) are exact here.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <limits>
#include <type_traits>

using std::isfinite;
using std::isinf;
using std::isnan;

// CUDA declares min and max for all pairs of number types; of two floats, a NaN loses against a number.
template <class A, class B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return fmin(T(a), T(b));
    return T(b) < T(a) ? T(b) : T(a);
}

template <class A, class B>
    requires(std::is_arithmetic_v<A> && std::is_arithmetic_v<B>)
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return fmax(T(a), T(b));
    return T(a) < T(b) ? T(b) : T(a);
}

namespace sim {

template <class To, class From>
__forceinline__ To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

// A number without a fraction as an integer: the nearest that the type has; 0 for a NaN.
template <class Integer>
constexpr Integer saturate(double x) {
    constexpr Integer smallest = std::numeric_limits<Integer>::min(), largest = std::numeric_limits<Integer>::max();
    if (x != x) return 0;
    return x <= double(smallest) ? smallest : x >= double(largest) ? largest : Integer(x);
}

}  // namespace sim

// ---- functions of real numbers --------------------------------------------------------------------------------

inline float rsqrtf(float x) { return 1 / sqrtf(x); }
inline double rsqrt(double x) { return 1 / sqrt(x); }
inline float rsqrt(float x) { return 1 / sqrtf(x); }
inline float rcbrtf(float x) { return 1 / cbrtf(x); }
inline double rcbrt(double x) { return 1 / cbrt(x); }
inline double rhypot(double x, double y) { return 1 / hypot(x, y); }
inline float rhypotf(float x, float y) { return 1 / hypotf(x, y); }
inline double norm3d(double x, double y, double z) { return hypot(hypot(x, y), z); }
inline float norm3df(float x, float y, float z) { return float(norm3d(x, y, z)); }
inline float fdividef(float x, float y) { return x / y; }

// The sine and cosine of pi x, from an angle of at most pi / 4.
inline void sincospi(double x, double* sine, double* cosine) {
    const double quarters = rint(2 * x), angle = M_PI * (x - quarters / 2), s = sin(angle), c = cos(angle);
    const long long quarter = (long long)quarters & 3;
    *sine = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
    *cosine = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
}

inline void sincospif(float x, float* sine, float* cosine) {
    double s, c;
    sincospi(x, &s, &c);
    *sine = float(s), *cosine = float(c);
}

inline double sinpi(double x) {
    double sine, cosine;
    sincospi(x, &sine, &cosine);
    return sine;
}
inline double cospi(double x) {
    double sine, cosine;
    sincospi(x, &sine, &cosine);
    return cosine;
}
inline float sinpif(float x) { return float(sinpi(x)); }
inline float cospif(float x) { return float(cospi(x)); }

// Inverse functions of the normal distribution, by Halley's method from Winitzki's approximation.
inline double erfcinv(double y) {
    if (!(y >= 0 && y <= 2)) return NAN;
    if (y == 0 || y == 2) return y == 0 ? INFINITY : -INFINITY;
    if (y > 1) return -erfcinv(2 - y);
    const double logarithm = log(y * (2 - y)), a = 0.147, t = 2 / (M_PI * a) + logarithm / 2;
    double x = sqrt(sqrt(t * t - logarithm / a) - t);
    for (int i = 0; i < 4; i++) {
        const double step = (erfc(x) - y) / (-M_2_SQRTPI * exp(-x * x));
        x -= step / (1 + x * step);
    }
    return x;
}
inline double erfinv(double y) {
    if (fabs(y) > 0.5) return y > 0 ? erfcinv(1 - y) : -erfcinv(1 + y);
    double x = y / M_2_SQRTPI;
    for (int i = 0; i < 5; i++) {
        const double step = (erf(x) - y) / (M_2_SQRTPI * exp(-x * x));
        x -= step / (1 + x * step);
    }
    return x;
}
inline double normcdf(double x) { return erfc(-x * M_SQRT1_2) / 2; }
inline double normcdfinv(double x) { return -M_SQRT2 * erfcinv(2 * x); }
inline float erfcinvf(float y) { return float(erfcinv(y)); }
inline float erfinvf(float y) { return float(erfinv(y)); }
inline float normcdff(float x) { return float(normcdf(x)); }
inline float normcdfinvf(float x) { return float(normcdfinv(x)); }

inline float __expf(float x) { return expf(x); }
inline float __exp10f(float x) { return powf(10, x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __log10f(float x) { return log10f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanf(float x) { return tanf(x); }
inline void __sincosf(float x, float* sine, float* cosine) { *sine = sinf(x), *cosine = cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }

// One operation, rounded to nearest, and not to be fused with another: the compiler fuses none here.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return float(1 / sqrt(double(x))); }
inline double __dadd_rn(double x, double y) { return x + y; }
inline double __dsub_rn(double x, double y) { return x - y; }
inline double __dmul_rn(double x, double y) { return x * y; }
inline double __ddiv_rn(double x, double y) { return x / y; }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline double __drcp_rn(double x) { return 1 / x; }
inline double __dsqrt_rn(double x) { return sqrt(x); }

// ---- conversions ----------------------------------------------------------------------------------------------

// To integers: rounded to nearest (rn), toward zero (rz), up (ru) or down (rd), and clamped to the type.
#define SIM_TO_INTEGER(From, name, To)                                             \
    inline To __##From##2##name##_rn(From x) { return sim::saturate<To>(rint(x)); } \
    inline To __##From##2##name##_rz(From x) { return sim::saturate<To>(trunc(x)); } \
    inline To __##From##2##name##_ru(From x) { return sim::saturate<To>(ceil(x)); } \
    inline To __##From##2##name##_rd(From x) { return sim::saturate<To>(floor(x)); }
#define SIM_CONVERSIONS(name, Integer)                       \
    SIM_TO_INTEGER(float, name, Integer)                     \
    SIM_TO_INTEGER(double, name, Integer)                    \
    inline float __##name##2float_rn(Integer x) { return float(x); }    \
    inline double __##name##2double_rn(Integer x) { return double(x); }
SIM_CONVERSIONS(int, int)
SIM_CONVERSIONS(uint, unsigned)
SIM_CONVERSIONS(ll, long long)
SIM_CONVERSIONS(ull, unsigned long long)
#undef SIM_CONVERSIONS
#undef SIM_TO_INTEGER

inline float __double2float_rn(double x) { return float(x); }

inline int __float_as_int(float x) { return sim::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return sim::bits<unsigned>(x); }
inline float __int_as_float(int x) { return sim::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return sim::bits<float>(x); }
inline long long __double_as_longlong(double x) { return sim::bits<long long>(x); }
inline double __longlong_as_double(long long x) { return sim::bits<double>(x); }
inline int __double2hiint(double x) { return int(sim::bits<uint64_t>(x) >> 32); }
inline int __double2loint(double x) { return int(sim::bits<uint64_t>(x)); }
inline double __hiloint2double(int high, int low) {
    return sim::bits<double>(uint64_t(unsigned(high)) << 32 | unsigned(low));
}

// ---- integers and their bits ----------------------------------------------------------------------------------

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline int __mul24(int x, int y) { return x * y; }
inline int __mulhi(int x, int y) { return int((long long)x * y >> 32); }
inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned long long)x * y >> 32; }
inline long long __mul64hi(long long x, long long y) { return (long long)((__int128)x * y >> 64); }
inline unsigned long long __umul64hi(unsigned long long x, unsigned long long y) {
    return (unsigned long long)((unsigned __int128)x * y >> 64);
}

// Averages, rounded down and up, and |x - y| + z.
inline int __hadd(int x, int y) { return int(((long long)x + y) >> 1); }
inline int __rhadd(int x, int y) { return int(((long long)x + y + 1) >> 1); }
inline unsigned __uhadd(unsigned x, unsigned y) { return unsigned(((unsigned long long)x + y) >> 1); }
inline unsigned __urhadd(unsigned x, unsigned y) { return unsigned(((unsigned long long)x + y + 1) >> 1); }
inline unsigned __usad(unsigned x, unsigned y, unsigned z) { return (x > y ? x - y : y - x) + z; }
inline unsigned __sad(int x, int y, unsigned z) { return unsigned(x > y ? (long long)x - y : (long long)y - x) + z; }

inline unsigned long long __brevll(unsigned long long x) {
    unsigned long long reversed = 0;
    for (int i = 0; i < 64; i++) reversed |= (x >> i & 1) << (63 - i);
    return reversed;
}
inline unsigned __brev(unsigned x) { return unsigned(__brevll(x) >> 32); }

// Each of the selector's four lowest hexadecimal digits names a byte: 0..3 of x, 4..7 of y; with 8 added, that
// byte's sign bit, eight times.
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const uint64_t bytes = uint64_t(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned digit = selector >> (4 * i), byte = unsigned(bytes >> (8 * (digit & 7)) & 0xFF);
        result |= (digit & 8 ? (byte & 0x80 ? 0xFFu : 0u) : byte) << (8 * i);
    }
    return result;
}

// 32 bits of the 64 in high:low, shifted by 0 to 31 bits; the last two clamp the shift to 32.
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline unsigned __funnelshift_lc(unsigned low, unsigned high, unsigned shift) {
    return shift < 32 ? __funnelshift_l(low, high, shift) : low;
}
inline unsigned __funnelshift_rc(unsigned low, unsigned high, unsigned shift) {
    return shift < 32 ? __funnelshift_r(low, high, shift) : high;
}

// The dot product of four bytes of a with four of b, added to c.
inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 32; i += 8) c += int8_t(a >> i) * int8_t(b >> i);
    return c;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned c) {
    for (int i = 0; i < 32; i += 8) c += unsigned(uint8_t(a >> i)) * uint8_t(b >> i);
    return c;
}

// ---- loads and stores that carry a hint for the caches ----------------------------------------------------------

#define SIM_LOAD(name)                      \
    template <class T>                      \
    __forceinline__ T name(const T* address) { \
        return *address;                    \
    }
SIM_LOAD(__ldg)
SIM_LOAD(__ldca)
SIM_LOAD(__ldcg)
SIM_LOAD(__ldcs)
SIM_LOAD(__ldlu)
SIM_LOAD(__ldcv)
#undef SIM_LOAD

#define SIM_STORE(name)                                                         \
    template <class T>                                                          \
    __forceinline__ void name(T* address, std::type_identity_t<T> value) {      \
        *address = value;                                                       \
    }
SIM_STORE(__stwb)
SIM_STORE(__stcg)
SIM_STORE(__stcs)
SIM_STORE(__stwt)
#undef SIM_STORE
