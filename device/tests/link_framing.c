// SPDX-License-Identifier: Apache-2.0
// Frames through encoder and decoder, damaged in every way. Run under AddressSanitizer. Prints "ok" and a summary.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "app/crc32.h"
#include "app/framing.h"

static uint64_t state = 1;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static void check(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "failed: %s\n", what);
    exit(1);
}

typedef struct {
    uint32_t good, bad;
    tvit_frame last;
    uint8_t payload[TVIT_LINK_MAX_PAYLOAD];
} counts;

static void feed(tvit_frame_decoder *decoder, const uint8_t *bytes, size_t count, counts *seen) {
    for (size_t i = 0; i < count; i++) {
        tvit_frame frame;
        const tvit_frame_status status = tvit_frame_decode(decoder, bytes[i], &frame);
        if (status == TVIT_FRAME_BAD) seen->bad++;
        if (status != TVIT_FRAME_GOOD) continue;
        seen->good++;
        seen->last = frame;
        check(frame.bytes <= TVIT_LINK_MAX_PAYLOAD, "a payload fits its buffer");
        memcpy(seen->payload, frame.payload, frame.bytes); // ASan sees a length that is too long
    }
}

int main(void) {
    static uint8_t line[TVIT_LINK_FRAME_BYTES(TVIT_LINK_MAX_PAYLOAD) + 64];
    static counts seen;
    tvit_frame_decoder decoder = {0};
    uint32_t damaged = 0;

    check(tvit_crc32(0, "123456789", 9) == 0xcbf43926u, "CRC-32 of the standard check string");
    check(tvit_crc32(tvit_crc32(0, "1234", 4), "56789", 5) == 0xcbf43926u, "CRC-32 continued");

    for (uint32_t round = 0; round < 20000; round++) {
        // Exactly as large as documented, so that ASan sees one byte too many.
        const uint32_t bytes = round < TVIT_LINK_MAX_PAYLOAD ? round : draw(TVIT_LINK_MAX_PAYLOAD + 1);
        uint8_t *packet = malloc(TVIT_LINK_PACKET_BYTES(bytes));
        uint8_t *out = malloc(TVIT_LINK_FRAME_BYTES(bytes));
        const uint32_t zeros = draw(4); // none, few, many or only zeros
        for (uint32_t i = 0; i < bytes; i++)
            packet[TVIT_LINK_HEADER_BYTES + i] =
                (uint8_t)(zeros == 3 || (zeros && draw(zeros == 1 ? 100 : 3) == 0) ? 0 : 1 + draw(255));
        const uint8_t type = (uint8_t)draw(256), session = (uint8_t)draw(256);
        const uint16_t sequence = (uint16_t)draw(65536);
        const size_t length = tvit_frame_encode(packet, type, session, sequence, bytes, out);
        check(length <= TVIT_LINK_FRAME_BYTES(bytes), "a frame is not longer than documented");
        check(out[0] == 0 && out[length - 1] == 0 && !memchr(out + 1, 0, length - 2), "zeros only at the ends");

        // Some damage, then the frame as it is: the frame always gets through, whatever came before.
        memcpy(line, out, length);
        size_t count = length;
        memset(&seen, 0, sizeof seen);
        const uint32_t kind = draw(5), at = draw((uint32_t)length);
        if (kind == 0) line[at] ^= (uint8_t)(1u << draw(8));
        if (kind == 1) count = at;
        if (kind == 2) memmove(line + at, line + at + 1, --count - at);
        if (kind == 3) {
            memmove(line + at + 1, line + at, count++ - at);
            line[at] = (uint8_t)draw(256);
        }
        if (kind == 4)
            for (count = 0; count < length; count++)
                line[count] = (uint8_t)draw(256);
        feed(&decoder, line, count, &seen);
        const uint32_t before = seen.good;
        damaged += before == 0;
        feed(&decoder, out, length, &seen);
        check(seen.good > before, "a good frame gets through"); // two where the first only lacked its end
        check(seen.last.type == type && seen.last.session == session && seen.last.sequence == sequence, "header");
        check(seen.last.bytes == bytes && !memcmp(seen.payload, packet + TVIT_LINK_HEADER_BYTES, bytes), "payload");
        free(packet);
        free(out);
    }

    // A line that never ends a frame, then one frame too long for the buffer: bad, once.
    memset(&seen, 0, sizeof seen);
    const uint8_t one = 1, zero = 0;
    for (uint32_t i = 0; i < 100000; i++)
        feed(&decoder, &one, 1, &seen);
    feed(&decoder, &zero, 1, &seen);
    feed(&decoder, &zero, 1, &seen);
    check(seen.good == 0 && seen.bad == 1, "an endless frame is one bad frame");
    printf("ok, %u of 20000 first copies were lost\n", damaged);
    return damaged > 10000 ? 0 : 1;
}
