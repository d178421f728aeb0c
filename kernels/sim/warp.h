// Operations of a warp: shuffles, votes, matches, reductions and __syncwarp.
//
// Each is one exchange of values among the lanes of a mask (sim::exchange), after which every lane picks
// what it needs. Lanes of the mask that do not exist or have ended are not waited for.
#pragma once
#include <string.h>

#include <type_traits>

#include "runtime.h"

// Of what a collective does with the values of all lanes: the simulator watches none of these accesses, so that the
// calls of its hooks (hooks.h) would cost time alone.
#define SIM_UNWATCHED __attribute__((no_sanitize("thread", "undefined")))

namespace sim {

// Brings `value` to the lanes of `mask`; returns what `pick(payloads)` makes of all their values, where
// payloads[i] points to lane i's value, or is null.
template <class Result, class T, class Pick>
Result exchange(unsigned mask, const T& value, Place place, Pick pick) {
    struct Lane : Collective {
        Pick* pick;
    };
    Result result;
    Lane lane;
    lane.mask = mask;
    lane.payload = &value;
    lane.result = &result;
    lane.place = place;
    lane.pick = &pick;
    lane.finish = [](Collective& self, unsigned, const void* const (&payloads)[32]) SIM_UNWATCHED {
        *static_cast<Result*>(self.result) = (*static_cast<Lane&>(self).pick)(payloads);
    };
    sim_warp_collective(&lane);
    return result;
}

// The value of lane `source`; all bits set if that lane takes no part, for the value is undefined then.
template <class T>
SIM_UNWATCHED inline __attribute__((always_inline)) T read_lane(const void* const (&payloads)[32], unsigned source) {
    T value;
    if (payloads[source])
        memcpy(&value, payloads[source], sizeof value);
    else
        memset(&value, 0xFF, sizeof value);
    return value;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, Place place) {
    return exchange<T>(mask, value, place, [&](auto& payloads) SIM_UNWATCHED { return read_lane<T>(payloads, source); });
}

inline unsigned lane() { return sim_this_thread()->lane; }

}  // namespace sim

#define SIM_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncwarp(unsigned mask = ~0u, SIM_PLACE) {
    sim::exchange<bool>(mask, true, {"__syncwarp()", file, line}, [](auto&) { return true; });
}

// A shuffle of width w works within groups of w lanes. A lane that would read beyond its group gets its own.

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SIM_PLACE) {
    unsigned first = sim::lane() & ~(width - 1u);
    return sim::shuffle(mask, value, first | (source & (width - 1u)), {"__shfl_sync()", file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, SIM_PLACE) {
    unsigned lane = sim::lane(), within = lane & (width - 1u);
    return sim::shuffle(mask, value, within < delta ? lane : lane - delta, {"__shfl_up_sync()", file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, SIM_PLACE) {
    unsigned lane = sim::lane(), within = lane & (width - 1u);
    unsigned source = within + delta < unsigned(width) ? lane + delta : lane;
    return sim::shuffle(mask, value, source, {"__shfl_down_sync()", file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, SIM_PLACE) {
    unsigned lane = sim::lane(), last = lane | (width - 1u), source = (lane ^ lane_mask) & 31;
    return sim::shuffle(mask, value, source > last ? lane : source, {"__shfl_xor_sync()", file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, SIM_PLACE) {
    return sim::exchange<unsigned>(mask, predicate, {"__ballot_sync()", file, line}, [](auto& payloads) SIM_UNWATCHED {
        unsigned votes = 0;
        for (unsigned i = 0; i < 32; i++)
            if (payloads[i] && sim::read_lane<int>(payloads, i)) votes |= 1u << i;
        return votes;
    });
}

inline int __any_sync(unsigned mask, int predicate, SIM_PLACE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}

inline int __all_sync(unsigned mask, int predicate, SIM_PLACE) {
    return __ballot_sync(mask, !predicate, file, line) == 0;
}

// The lanes that are here together. A card promises no more than that the caller is among them; here, the caller
// meets all lanes that come to this place before something else is waited for.
inline unsigned __activemask(SIM_PLACE) {
    return sim::exchange<unsigned>(0, true, {"__activemask()", file, line}, [](auto& payloads) SIM_UNWATCHED {
        unsigned lanes = 0;
        for (unsigned i = 0; i < 32; i++)
            if (payloads[i]) lanes |= 1u << i;
        return lanes;
    });
}

// The lanes whose value has the same bits as the caller's.
template <class T>
unsigned __match_any_sync(unsigned mask, T value, SIM_PLACE) {
    return sim::exchange<unsigned>(mask, value, {"__match_any_sync()", file, line}, [&](auto& payloads) SIM_UNWATCHED {
        unsigned lanes = 0;
        for (unsigned i = 0; i < 32; i++)
            if (payloads[i] && memcmp(payloads[i], &value, sizeof value) == 0) lanes |= 1u << i;
        return lanes;
    });
}

// The mask if all its lanes have the same value, else 0.
template <class T>
unsigned __match_all_sync(unsigned mask, T value, int* all, SIM_PLACE) {
    const unsigned lanes =
        sim::exchange<unsigned>(mask, value, {"__match_all_sync()", file, line}, [&](auto& payloads) SIM_UNWATCHED {
            unsigned lanes = 0;
            for (unsigned i = 0; i < 32; i++) {
                if (payloads[i] && memcmp(payloads[i], &value, sizeof value) != 0) return 0u;
                if (payloads[i]) lanes |= 1u << i;
            }
            return lanes;
        });
    *all = lanes != 0;
    return lanes;
}

// The values of all lanes combined, in each of them: integers only, as on the card.
#define SIM_REDUCE(name, types, expression)                                                                  \
    template <class T>                                                                                        \
        requires(sizeof(T) == 4 && std::types<T>)                                                             \
    T name(unsigned mask, T value, SIM_PLACE) {                                                               \
        const sim::Place place = {#name "()", file, line};                                                    \
        return sim::exchange<T>(mask, value, place, [](auto& payloads) SIM_UNWATCHED {                                      \
            unsigned i = 0;                                                                                   \
            while (!payloads[i]) i++;                                                                         \
            T a = sim::read_lane<T>(payloads, i);                                                             \
            for (i++; i < 32; i++) {                                                                          \
                if (!payloads[i]) continue;                                                                   \
                const T b = sim::read_lane<T>(payloads, i);                                                   \
                a = expression;                                                                               \
            }                                                                                                 \
            return a;                                                                                         \
        });                                                                                                   \
    }
SIM_REDUCE(__reduce_add_sync, is_integral_v, a + b)
SIM_REDUCE(__reduce_min_sync, is_integral_v, b < a ? b : a)
SIM_REDUCE(__reduce_max_sync, is_integral_v, a < b ? b : a)
SIM_REDUCE(__reduce_and_sync, is_unsigned_v, a & b)
SIM_REDUCE(__reduce_or_sync, is_unsigned_v, a | b)
SIM_REDUCE(__reduce_xor_sync, is_unsigned_v, a ^ b)
#undef SIM_REDUCE

#undef SIM_PLACE
