// SPDX-License-Identifier: Apache-2.0
// Requests with every kind of wrong length, region, offset and number, in good frames, to a server with and without a
// model. Run under AddressSanitizer and UBSan. usage: link_server [MODEL]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "link_board.h"

static uint64_t state = 7;

static uint32_t draw(uint32_t below) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 33) % below;
}

static uint32_t awkward(void) {
    static const uint32_t values[] = {0,   1,    2,    3,    15,         16,         63,         64,
                                      255, 1024, 1032, 4096, 0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff};
    return draw(3) ? values[draw(sizeof values / sizeof values[0])] : draw(2000);
}

static void check(int ok, const char *what) {
    if (ok) return;
    fprintf(stderr, "failed: %s\n", what);
    exit(1);
}

// Send one request; count the answers to its sequence that are not PROGRESS. Returns the type of the last.
static uint8_t ask(link_board *board, uint8_t type, uint8_t session, uint16_t sequence, uint8_t *packet, size_t bytes,
                   uint32_t *answers) {
    static uint8_t line[TVIT_LINK_FRAME_BYTES(TVIT_LINK_MAX_PAYLOAD)];
    const size_t length = tvit_frame_encode(packet, type, session, sequence, bytes, line);
    const size_t waiting = link_board_feed(board, line, length);
    uint8_t *out = malloc(waiting + 1);
    link_board_drain(board, out);
    tvit_frame_decoder decoder = {0};
    uint8_t last = 0;
    *answers = 0;
    for (size_t i = 0; i < waiting; i++) {
        tvit_frame frame;
        const tvit_frame_status status = tvit_frame_decode(&decoder, out[i], &frame);
        check(status != TVIT_FRAME_BAD, "the server sends good frames only");
        if (status != TVIT_FRAME_GOOD || frame.type == TVIT_LINK_PROGRESS || frame.type == TVIT_LINK_BOOT) continue;
        check(frame.sequence == sequence && frame.session == session, "an answer belongs to its request");
        check(frame.type == TVIT_LINK_ERROR || frame.type == (uint8_t)(type | TVIT_LINK_ANSWER), "type of an answer");
        last = frame.type;
        ++*answers;
    }
    free(out);
    return last;
}

static uint8_t hello(link_board *board, uint8_t *packet, uint8_t session, uint32_t nonce, uint32_t *answers) {
    uint8_t *p = packet + TVIT_LINK_HEADER_BYTES;
    tvit_put_u32(p, TVIT_LINK_MAGIC);
    tvit_put_u32(p + 4, TVIT_LINK_VERSION);
    tvit_put_u32(p + 8, nonce);
    return ask(board, TVIT_LINK_HELLO, session, 0, packet, TVIT_LINK_HELLO_BYTES, answers);
}

static void hammer(const uint8_t *model, uint32_t model_bytes) {
    enum { ARENA = 1 << 16, MODEL_RAM = 4096 };
    link_board *board = link_board_new(model, model_bytes, ARENA, MODEL_RAM, 4096);
    static uint8_t packet[TVIT_LINK_PACKET_BYTES(TVIT_LINK_MAX_PAYLOAD)];
    uint8_t *p = packet + TVIT_LINK_HEADER_BYTES;
    uint32_t answers, good = 0, refused = 0;
    link_board_feed(board, NULL, 0);
    for (uint32_t round = 0; round < 60000; round++) {
        if (round % 512 == 0)
            check(hello(board, packet, (uint8_t)(1 + round / 512 % 255), round, &answers) ==
                          (TVIT_LINK_HELLO | TVIT_LINK_ANSWER) &&
                      answers == 1,
                  "HELLO is answered");
        const uint8_t session = (uint8_t)(1 + round / 512 % 255);
        const uint8_t type = (uint8_t)(draw(20) ? 1 + draw(13) : draw(0x40));
        uint32_t bytes = draw(TVIT_LINK_MAX_PAYLOAD + 1);
        for (uint32_t i = 0; i < bytes; i++)
            p[i] = (uint8_t)draw(256);
        if (draw(4)) {
            static const uint8_t usual[] = {0, 12, 0, 0, 4, 24, 12, 12, 16, 20, 8, 4, 4, 0};
            bytes = type < sizeof usual ? usual[type] : bytes;
            if (type == TVIT_LINK_WRITE) bytes = draw(TVIT_LINK_MAX_PAYLOAD + 1);
        }
        if (draw(8)) {
            p[0] = (uint8_t)draw(6);
            p[1] = 0;
            tvit_put_u16(p + 2, draw(3) ? draw(40) : awkward());
            tvit_put_u32(p + 4, awkward());
            tvit_put_u32(p + 8, awkward());
        }
        if (type == TVIT_LINK_HELLO) continue; // would change the session
        const uint8_t answer =
            ask(board, type, session, (uint16_t)(round << 4 ^ (draw(9) ? 0 : 0x8000)), packet, bytes, &answers);
        if (link_board_resets(board)) break; // one in 2^32
        check(answers == 1, "each request has exactly one answer");
        good += answer != TVIT_LINK_ERROR;
        refused += answer == TVIT_LINK_ERROR;
    }
    check(good > 2000 && refused > 2000, "both kinds of answers");
    link_board_free(board);
    printf("%s model: %u answered, %u refused\n", model_bytes ? "with" : "without", good, refused);
}

int main(int argc, char **argv) {
    hammer(NULL, 0);
    if (argc > 1) {
        static uint8_t model[1 << 20];
        FILE *file = fopen(argv[1], "rb");
        check(file != NULL, argv[1]);
        const size_t bytes = fread(model, 1, sizeof model, file);
        fclose(file);
        hammer(model, (uint32_t)bytes);
    }
    puts("ok");
    return 0;
}
