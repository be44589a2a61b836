// SPDX-License-Identifier: Apache-2.0
// Bytes from a line: the decoder finds frames that fit its buffer, encoding one of them again gives a frame that
// decodes to the same, and after any garbage the next frame gets through.
#include <string.h>

#include "app/crc32.h"
#include "app/framing.h"
#include "fuzz.h"

typedef struct {
    uint32_t good, bad;
    tvit_frame last;
} found;

static found feed(tvit_frame_decoder *decoder, const uint8_t *bytes, size_t count) {
    found all = {0};
    for (size_t i = 0; i < count; i++) {
        tvit_frame frame;
        const tvit_frame_status status = tvit_frame_decode(decoder, bytes[i], &frame);
        FUZZ_CHECK(decoder->length <= sizeof decoder->packet);
        all.bad += status == TVIT_FRAME_BAD;
        if (status != TVIT_FRAME_GOOD) continue;
        FUZZ_CHECK(frame.bytes <= TVIT_LINK_MAX_PAYLOAD && frame.payload == decoder->packet + TVIT_LINK_HEADER_BYTES);
        all.good++;
        all.last = frame;
    }
    return all;
}

// Encode a payload and decode it with this decoder, in whatever state it is.
static void round_trip(tvit_frame_decoder *decoder, const uint8_t *payload, uint32_t bytes, const uint8_t head[4]) {
    uint8_t *packet = malloc(TVIT_LINK_PACKET_BYTES(bytes)), *line = malloc(TVIT_LINK_FRAME_BYTES(bytes));
    FUZZ_CHECK(packet && line);
    if (bytes) memcpy(packet + TVIT_LINK_HEADER_BYTES, payload, bytes);
    const uint16_t sequence = tvit_get_u16(head + 2);
    const size_t length = tvit_frame_encode(packet, head[0], head[1], sequence, bytes, line);
    FUZZ_CHECK(length <= TVIT_LINK_FRAME_BYTES(bytes));
    FUZZ_CHECK(line[0] == 0 && line[length - 1] == 0 && !memchr(line + 1, 0, length - 2));
    const found all = feed(decoder, line, length);
    FUZZ_CHECK(all.good >= 1); // two where what came before only lacked its end
    FUZZ_CHECK(all.last.type == head[0] && all.last.session == head[1] && all.last.sequence == sequence);
    FUZZ_CHECK(all.last.bytes == bytes);
    FUZZ_CHECK(!bytes || !memcmp(all.last.payload, packet + TVIT_LINK_HEADER_BYTES, bytes));
    free(line);
    free(packet);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    tvit_frame_decoder decoder = {0};
    uint8_t head[4] = {0};
    memcpy(head, data, bytes < 4 ? bytes : 4);
    feed(&decoder, data, bytes);
    round_trip(&decoder, data, bytes < TVIT_LINK_MAX_PAYLOAD ? (uint32_t)bytes : TVIT_LINK_MAX_PAYLOAD, head);

    const size_t half = bytes / 2; // a CRC continued is the CRC of the whole
    FUZZ_CHECK(tvit_crc32(tvit_crc32(0, data, half), data + half, bytes - half) == tvit_crc32(0, data, bytes));
    return 0;
}
