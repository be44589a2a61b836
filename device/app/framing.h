// SPDX-License-Identifier: Apache-2.0
// Frames: a packet (header, payload, CRC-32) stuffed by COBS between zero bytes (PROTOCOL.md, section 1).
// COBS: Cheshire and Baker, "Consistent Overhead Byte Stuffing", IEEE/ACM Transactions on Networking 7(2), 1999.
#ifndef TVIT_FRAMING_H
#define TVIT_FRAMING_H

#include <stddef.h>
#include <stdint.h>

#include "tvit/protocol.h"

static inline uint16_t tvit_get_u16(const uint8_t *p) {
    return (uint16_t)(p[0] | p[1] << 8);
}
static inline uint32_t tvit_get_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}
static inline void tvit_put_u16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}
static inline void tvit_put_u32(uint8_t *p, uint32_t v) {
    tvit_put_u16(p, v);
    tvit_put_u16(p + 2, v >> 16);
}
static inline void tvit_put_u64(uint8_t *p, uint64_t v) {
    tvit_put_u32(p, (uint32_t)v);
    tvit_put_u32(p + 4, (uint32_t)(v >> 32));
}

typedef struct {
    uint8_t type, session;
    uint16_t sequence;
    uint32_t bytes;         // of the payload
    const uint8_t *payload; // in the decoder, until the next byte is fed
} tvit_frame;

typedef enum {
    TVIT_FRAME_NONE = 0, // more bytes are needed
    TVIT_FRAME_GOOD = 1,
    TVIT_FRAME_BAD = 2, // a frame ended that was too short, too long, malformed or failed its CRC
} tvit_frame_status;

typedef struct {
    uint8_t packet[TVIT_LINK_PACKET_BYTES(TVIT_LINK_MAX_PAYLOAD)];
    uint32_t length;  // bytes in packet
    uint8_t block;    // bytes left of the COBS block, its code byte excluded
    uint8_t zero_due; // the block stands for a zero behind it
    uint8_t started, bad;
} tvit_frame_decoder;

// An all-zero decoder waits for the first delimiter-separated frame.
// Feed one byte. On TVIT_FRAME_GOOD, *frame points into the decoder.
tvit_frame_status tvit_frame_decode(tvit_frame_decoder *decoder, uint8_t byte, tvit_frame *frame);

// Encode a packet whose payload of `bytes` <= TVIT_LINK_MAX_PAYLOAD lies behind TVIT_LINK_HEADER_BYTES free bytes in
// `packet`, with TVIT_LINK_CRC_BYTES free bytes behind it. out: TVIT_LINK_FRAME_BYTES(bytes). Returns the length of the
// frame.
size_t tvit_frame_encode(uint8_t *packet, uint8_t type, uint8_t session, uint16_t sequence, size_t bytes, uint8_t *out);

#endif
