// Writes a few words of 64 bits, n of them, that travel as an argument of the launch.
//
// A copy from the host would need memory that stays as it is until the copy is done; arguments are copied when
// the launch is queued. There is one rung: the time is that of the launch.
//
// Grid: x = 1 block of at least n threads.

constexpr int WORDS_AT_ONCE = 32;

struct Words {
    unsigned long long word[32];
};

__global__ void __launch_bounds__(WORDS_AT_ONCE) write_words(unsigned long long* out, Words words, int n) {
    const int i = threadIdx.x;
    if (i < n) out[i] = words.word[i];
}
