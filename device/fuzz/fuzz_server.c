// SPDX-License-Identifier: Apache-2.0
// Messages to the link server, in good frames, in bad ones, in a run, in the fault handler. It never touches memory
// outside its buffers (AddressSanitizer; flash, model RAM and arena are exactly sized), never sends a bad frame, and
// answers each request exactly once.
//
// An input is two bytes for the board, then steps: control, type, length, and `length` bytes of payload.
#include <string.h>

#include "app/crc32.h"
#include "fuzz.h"
#include "link_board.h"
#include "model_mutator.h"
#include "seed_model.h"

enum {
    ARENA = 8192,
    MODEL_RAM = 8192,
    MOST_STEPS = 64,
    MOST_OPERATORS = 4096,
    FIRST_BAUD = 115200,
    MOST_BAUD = 921600
};

// Control of a step. BATCH keeps the frame back, so that it arrives together with the next ones, during a run. Without
// ODD a request has the length and the keys that its type wants.
enum { OTHER_SESSION = 1, SAME_NUMBER = 2, RAW = 4, BATCH = 8, ODD = 16, RUN_IMAGE = 32, UPLOAD = 64, FAULT = 128 };

typedef struct {
    link_board *board;
    const uint8_t *next, *end;
    uint8_t session;
    uint16_t sequence;
    uint8_t line[4 * TVIT_LINK_FRAME_BYTES(TVIT_LINK_MAX_PAYLOAD)];
    size_t waiting; // bytes in line
    uint32_t asked; // requests among them that have one answer each
    int rates;      // the rate was asked to change: what comes on trial may be dropped
    int wrong;      // the only request is too short or too long: nothing but ERROR is an answer
} host;

// Look at what the board said; returns the answers among it, of which good ones only where `may_succeed`.
static uint32_t listen(link_board *board, size_t bytes, int may_succeed) {
    uint8_t *out = malloc(bytes + 1);
    FUZZ_CHECK(out != NULL);
    link_board_drain(board, out);
    tvit_frame_decoder decoder = {0};
    uint32_t answers = 0;
    for (size_t i = 0; i < bytes; i++) {
        tvit_frame frame;
        const tvit_frame_status status = tvit_frame_decode(&decoder, out[i], &frame);
        FUZZ_CHECK(status != TVIT_FRAME_BAD);
        if (status == TVIT_FRAME_NONE) continue;
        FUZZ_CHECK(frame.type >= TVIT_LINK_ERROR);
        if (frame.type == TVIT_LINK_ERROR) FUZZ_CHECK(frame.bytes > TVIT_LINK_ERROR_BYTES); // has a text
        FUZZ_CHECK(may_succeed || frame.type < TVIT_LINK_ANSWER);
        answers += frame.type == TVIT_LINK_ERROR || frame.type >= TVIT_LINK_ANSWER;
    }
    free(out);
    return answers;
}

static void deliver(host *h) {
    const uint32_t answers = listen(h->board, link_board_feed(h->board, h->line, h->waiting), !h->wrong);
    FUZZ_CHECK(answers == h->asked || h->asked == UINT32_MAX || h->rates);
    const uint32_t baud = link_board_baud(h->board);
    FUZZ_CHECK(baud == 0 || (baud >= 9600 && baud <= MOST_BAUD));
    h->waiting = 0;
    h->asked = 0;
    h->wrong = 0;
}

static void add_frame(host *h, uint8_t type, uint8_t session, uint16_t sequence, const uint8_t *payload, size_t bytes) {
    uint8_t packet[TVIT_LINK_PACKET_BYTES(TVIT_LINK_MAX_PAYLOAD)];
    memcpy(packet + TVIT_LINK_HEADER_BYTES, payload, bytes);
    if (sizeof h->line - h->waiting < TVIT_LINK_FRAME_BYTES(bytes)) deliver(h);
    h->waiting += tvit_frame_encode(packet, type, session, sequence, bytes, h->line + h->waiting);
    if (h->asked != UINT32_MAX) h->asked += type < TVIT_LINK_ERROR; // what is no request has no answer
}

static void request(host *h, uint8_t type, const uint8_t *payload, size_t bytes) {
    h->sequence = (uint16_t)(h->sequence + 16);
    add_frame(h, type, h->session, h->sequence, payload, bytes);
}

static void hello(host *h, uint32_t nonce) {
    uint8_t payload[TVIT_LINK_HELLO_BYTES] = {0};
    tvit_put_u32(payload, TVIT_LINK_MAGIC);
    tvit_put_u32(payload + 4, TVIT_LINK_VERSION);
    tvit_put_u32(payload + 8, nonce);
    request(h, TVIT_LINK_HELLO, payload, sizeof payload);
}

static void write_region(host *h, uint8_t region, uint32_t offset, const uint8_t *bytes, size_t count) {
    uint8_t payload[TVIT_LINK_MAX_PAYLOAD] = {region};
    FUZZ_CHECK(count <= sizeof payload - TVIT_LINK_WRITE_BYTES);
    tvit_put_u32(payload + 4, offset);
    memcpy(payload + TVIT_LINK_WRITE_BYTES, bytes, count);
    request(h, TVIT_LINK_WRITE, payload, TVIT_LINK_WRITE_BYTES + count);
}

// A model, mutated but for seed 0, into model RAM, and use it.
static void upload(host *h, uint32_t seed) {
    static uint8_t file[MODEL_RAM];
    const small_model *m = seed_model(seed);
    size_t bytes = m->bytes;
    FUZZ_CHECK(bytes <= sizeof file);
    memcpy(file, m->file, bytes);
    if (seed) bytes = model_mutate(file, bytes, sizeof file, seed);
    for (size_t at = 0; at < bytes; at += 1024)
        write_region(h, TVIT_LINK_REGION_MODEL_RAM, (uint32_t)at, file + at, bytes - at < 1024 ? bytes - at : 1024);
    uint8_t payload[8];
    tvit_put_u32(payload, TVIT_LINK_MODEL_RAM);
    tvit_put_u32(payload + 4, (uint32_t)bytes);
    request(h, TVIT_LINK_MODEL_LOAD, payload, sizeof payload);
}

// Length of a request's payload by its type; WRITE and ECHO are as long as they like, within limits.
static const uint8_t usual[16] = {0, TVIT_LINK_HELLO_BYTES, 0, 0, 4, 0, 12, 12, TVIT_LINK_RUN_BYTES, 0, 8, 4, 4, 4};

static int length_is_wrong(uint8_t type, size_t bytes) {
    if (type == TVIT_LINK_HELLO || type == TVIT_LINK_WRITE)
        return bytes < (type == TVIT_LINK_HELLO ? TVIT_LINK_HELLO_BYTES : TVIT_LINK_WRITE_BYTES);
    return type < TVIT_LINK_ERROR && type != TVIT_LINK_ECHO && (type > TVIT_LINK_SET_BAUD || bytes != usual[type]);
}

static const uint32_t rates[4] = {FIRST_BAUD, 2 * FIRST_BAUD, MOST_BAUD, MOST_BAUD + 1};

// Length and keys as the type wants them; returns the length.
static size_t well_formed(uint8_t type, uint8_t *payload, size_t bytes) {
    if (type == TVIT_LINK_HELLO) {
        tvit_put_u32(payload, TVIT_LINK_MAGIC);
        tvit_put_u16(payload + 4, payload[4] < 200 ? TVIT_LINK_VERSION : payload[4]);
    }
    if (type == TVIT_LINK_RESET) tvit_put_u32(payload, TVIT_LINK_RESET_KEY);
    if (type == TVIT_LINK_SET_BAUD && payload[3] < 200) tvit_put_u32(payload, rates[payload[0] % 4]);
    if (type == TVIT_LINK_WRITE) return bytes < TVIT_LINK_WRITE_BYTES ? TVIT_LINK_WRITE_BYTES : bytes;
    return type == TVIT_LINK_ECHO ? bytes : usual[type];
}

// One step; 0 at the end of the input.
static int step(host *h) {
    if (h->end - h->next < 3) return 0;
    const uint8_t control = h->next[0], type = control & ODD ? h->next[1] : h->next[1] & 15;
    const size_t room = (size_t)(h->end - h->next) - 3, bytes = h->next[2] < room ? h->next[2] : room;
    uint8_t payload[TVIT_LINK_MAX_PAYLOAD] = {0};
    memcpy(payload, h->next + 3, bytes);
    h->next += 3 + bytes;
    size_t length = control & ODD ? (bytes >= 200 ? bytes * 4 : bytes) : well_formed(type, payload, bytes);
    if (control & FAULT) {
        deliver(h);
        listen(h->board, link_board_fault(h->board, payload, length), 1);
        uint8_t packet[TVIT_LINK_PACKET_BYTES(4)], line[TVIT_LINK_FRAME_BYTES(4)];
        tvit_put_u32(packet + TVIT_LINK_HEADER_BYTES, type ? TVIT_LINK_RESET_KEY : 0);
        const size_t count = tvit_frame_encode(packet, TVIT_LINK_RESET, h->session, h->sequence, 4, line);
        listen(h->board, link_board_fault(h->board, line, count), 1); // all that is left to do
        hello(h, 2);
        deliver(h);
        return 1;
    }
    if (control & UPLOAD) {
        upload(h, tvit_get_u32(payload));
    } else if (control & RAW) {
        if (sizeof h->line - h->waiting < length + 2) deliver(h);
        h->line[h->waiting++] = 0;
        memcpy(h->line + h->waiting, payload, length);
        h->waiting += length;
        h->line[h->waiting++] = 0;
        h->asked = UINT32_MAX; // it may hold good frames
    } else {
        if (control & RUN_IMAGE) { // an image, and a run that names it
            write_region(h, TVIT_LINK_REGION_TENSOR, 0, payload + 4, 8);
            tvit_put_u32(payload + 12, tvit_crc32(0, payload + 4, 8));
            tvit_put_u32(payload + 4, payload[4] < 200 ? 0xffffffffu : payload[5]);
            tvit_put_u32(payload + 8, 0);
            length = TVIT_LINK_RUN_BYTES;
        }
        const uint8_t kind = control & RUN_IMAGE ? TVIT_LINK_RUN : type;
        const uint8_t session = control & OTHER_SESSION ? payload[11] : h->session;
        if (kind == TVIT_LINK_TEST_FAULT && tvit_get_u32(payload) == TVIT_LINK_TEST_HANG) return 1; // it would
        if (!(control & SAME_NUMBER)) h->sequence = (uint16_t)(h->sequence + 16 + (type == 0xff ? 0x4100 : 0));
        // What may change the session, or end a run without an answer, is counted no more.
        if (kind == TVIT_LINK_HELLO || kind == TVIT_LINK_RESET) h->asked = UINT32_MAX;
        if (kind == TVIT_LINK_SET_BAUD) h->rates = 1;
        h->wrong = !h->waiting && !(control & BATCH) && length_is_wrong(kind, length);
        add_frame(h, kind, session, h->sequence, payload, length);
    }
    if (control & BATCH)
        h->asked = UINT32_MAX; // a repeated RUN has PROGRESS, an abandoned one nothing
    else
        deliver(h);
    return link_board_operators(h->board) < MOST_OPERATORS;
}

// What a port may offer or lack.
static void change_port(tvit_port *port, uint8_t kind) {
    static const tvit_port_memory memories[] = {{"sram", 0x3fc88000, 1 << 19}, {"flash", 0x42000000, 1 << 24}};
    static const uint32_t word;
    if (kind & 1) port->model_exact = 0;
    if (kind & 2) port->reset = NULL;
    if (kind & 4) port->trace_capacity = 0;
    if (kind & 8) port->memories = memories, port->memory_count = 2;
    if (kind & 16) port->test_faults = 1, port->invalid_address = (uintptr_t)&word;
    if (kind & 32) port->trace_capacity = 2;
    if (kind & 64) port->boot_reason = NULL, port->details = NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes) {
    static host h;
    if (bytes < 2) return 0;
    const uint8_t kind = data[0], other = data[1];
    small_model m = small_model_copy(seed_model(kind >> 2));
    if (kind & 16) m.data[0] ^= 1; // its CRC is wrong
    if (kind & 32) m.plan->arena_bytes = ARENA + 16, small_model_seal(&m);
    if (other & 128) memset(m.file, other & 64 ? 0xff : 0, 4); // nothing was ever flashed
    const uint32_t flash = kind & 1 ? (kind & 64 ? 40 : m.bytes) : 0;
    memset(&h, 0, sizeof h);
    h.board = link_board_new(m.file, flash, ARENA, kind & 2 ? MODEL_RAM : 0, kind & 128 ? 4096 : 0);
    small_model_free(&m);
    change_port(link_board_port(h.board), other);
    if (!(other & 32)) link_board_offer_rates(h.board, FIRST_BAUD, MOST_BAUD);
    link_board_restart(h.board);
    link_board_log(h.board, "key=value");
    h.session = 1;
    h.next = data + 2;
    h.end = data + bytes;
    listen(h.board, link_board_feed(h.board, NULL, 0), 1); // BOOT, LOG
    hello(&h, 1);
    deliver(&h);
    for (int steps = 0; steps < MOST_STEPS && step(&h); steps++) {
    }
    deliver(&h);
    link_board_free(h.board);
    return 0;
}
