// SPDX-License-Identifier: Apache-2.0
#include "framing.h"

#include "crc32.h"

static void append(tvit_frame_decoder *d, uint8_t byte) {
    if (d->length < sizeof d->packet)
        d->packet[d->length++] = byte;
    else
        d->bad = 1;
}

static tvit_frame_status finish(tvit_frame_decoder *d, tvit_frame *frame) {
    const uint32_t length = d->length;
    const int complete = d->started && !d->bad && d->block == 0;
    const int empty = !d->started;
    d->length = 0;
    d->block = d->zero_due = d->started = d->bad = 0;
    if (empty) return TVIT_FRAME_NONE;
    if (!complete || length < TVIT_LINK_PACKET_BYTES(0)) return TVIT_FRAME_BAD;
    const uint32_t body = length - TVIT_LINK_CRC_BYTES;
    if (tvit_crc32(0, d->packet, body) != tvit_get_u32(d->packet + body)) return TVIT_FRAME_BAD;
    frame->type = d->packet[0];
    frame->session = d->packet[1];
    frame->sequence = tvit_get_u16(d->packet + 2);
    frame->bytes = body - TVIT_LINK_HEADER_BYTES;
    frame->payload = d->packet + TVIT_LINK_HEADER_BYTES;
    return TVIT_FRAME_GOOD;
}

tvit_frame_status tvit_frame_decode(tvit_frame_decoder *decoder, uint8_t byte, tvit_frame *frame) {
    if (byte == 0) return finish(decoder, frame);
    if (decoder->block == 0) { // a code byte: the distance to the next zero
        if (decoder->zero_due) append(decoder, 0);
        decoder->started = 1;
        decoder->block = (uint8_t)(byte - 1u);
        decoder->zero_due = byte != 0xff;
    } else {
        append(decoder, byte);
        decoder->block--;
    }
    return TVIT_FRAME_NONE;
}

size_t tvit_frame_encode(uint8_t *packet, uint8_t type, uint8_t session, uint16_t sequence, size_t bytes,
                         uint8_t *out) {
    const size_t body = TVIT_LINK_HEADER_BYTES + bytes;
    const size_t length = body + TVIT_LINK_CRC_BYTES;
    packet[0] = type;
    packet[1] = session;
    tvit_put_u16(packet + 2, sequence);
    tvit_put_u32(packet + body, tvit_crc32(0, packet, body));

    size_t at = 0, code_at;
    uint8_t code = 1;
    out[at++] = 0;
    code_at = at++;
    for (size_t i = 0; i < length; i++) {
        if (packet[i] != 0) {
            out[at++] = packet[i];
            code++;
        }
        if (packet[i] == 0 || (code == 0xff && i + 1 < length)) {
            out[code_at] = code;
            code = 1;
            code_at = at++;
        }
    }
    out[code_at] = code;
    out[at++] = 0;
    return at;
}
