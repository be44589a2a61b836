/* SPDX-License-Identifier: Apache-2.0 */
/* The command-line program: options, UART on stdio, a pty or a TCP socket, results as text and JSON. */
#define _GNU_SOURCE
#include "lx7sim.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#ifndef LX7SIM_CONFIG
#define LX7SIM_CONFIG "esp32s3.toml"
#endif

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_MAX_CYCLES = 3 };

/* Cycles between looks at the UART's other end, and how long to wait there for an idle program. */
enum { SLICE = 2000000, IDLE_WAIT_MS = 20 };

typedef struct options {
    const char *elf, *config, *flash, *append, *uart, *json;
    int64_t cores, max_cycles, trace;
    bool pie, trap, reboot, registers, pcs, summary;
} options_t;

typedef struct uart {
    int in, out;       /* -1: none */
    bool end_of_input; /* stdin closed */
    bool is_socket;
} uart_end_t;

static volatile sig_atomic_t interrupted;

static void on_signal(int number) {
    (void)number;
    interrupted = 1;
}

static void usage(FILE *out) {
    fprintf(
        out,
        "usage: lx7sim [options] PROGRAM.elf\n"
        "\n"
        "Simulates an Xtensa LX7 of the ESP32-S3 with a cycle model. PROGRAM.elf is one that also runs on\n"
        "qemu-system-xtensa -M kc705-nommu -cpu de212 -kernel PROGRAM.elf.\n"
        "\n"
        "  --config FILE       timing parameters and memory regions (default: esp32s3.toml of this tool)\n"
        "  --flash FILE        contents of the flash window at 0x70000000 and 0x90000000\n"
        "  --append TEXT       the command line in the boot parameters\n"
        "  --uart END          stdio (default), none, pty, tcp:PORT (0: any free port; waits for a connection)\n"
        "  --cores N           1 (default) or 2; core 1 starts in run-stall at 0x40000400\n"
        "  --pie               execute the PIE vector instructions; without it they raise IllegalInstruction\n"
        "  --trap              raise exceptions for accesses outside the memory map instead of stopping\n"
        "  --reboot            start again when the program resets the board, instead of ending\n"
        "  --max-cycles N      stop with exit code 3 after N cycles\n"
        "  --trace N           print the first N instructions with the cycle each issues in\n"
        "  --dump-registers    print all registers when the program ends, whatever ends it\n"
        "  --summary           print instructions, cycles and stalls to stderr at the end\n"
        "  --json FILE         write them as JSON; with --pcs also the counters of every address\n"
        "  --help\n"
        "\n"
        "The program ends the run by writing 0xdead to 0x9d020010. Exit code 0 then, 1 after an error, 2 for wrong\n"
        "options, 3 at --max-cycles.\n");
}

static bool parse_number(const char *text, int64_t *value) {
    char *end;
    errno = 0;
    *value = strtoll(text, &end, 0);
    return *text && !*end && !errno && *value >= 0;
}

static int parse_options(int argc, char **argv, options_t *options) {
    enum {
        CONFIG = 1,
        FLASH,
        APPEND,
        UART,
        CORES,
        PIE,
        TRAP,
        REBOOT,
        MAX_CYCLES,
        TRACE,
        REGISTERS,
        SUMMARY,
        JSON,
        PCS,
        HELP
    };
    static const struct option table[] = {
        {"config", 1, 0, CONFIG},
        {"flash", 1, 0, FLASH},
        {"uart", 1, 0, UART},
        {"cores", 1, 0, CORES},
        {"pie", 0, 0, PIE},
        {"trap", 0, 0, TRAP},
        {"max-cycles", 1, 0, MAX_CYCLES},
        {"trace", 1, 0, TRACE},
        {"dump-registers", 0, 0, REGISTERS},
        {"summary", 0, 0, SUMMARY},
        {"json", 1, 0, JSON},
        {"pcs", 0, 0, PCS},
        {"help", 0, 0, HELP},
        {"append", 1, 0, APPEND},
        {"reboot", 0, 0, REBOOT},
        {0, 0, 0, 0},
    };
    *options = (options_t){.config = LX7SIM_CONFIG, .uart = "stdio", .cores = 1};
    for (int id; (id = getopt_long(argc, argv, "h", table, NULL)) != -1;) {
        bool ok = true;
        switch (id) {
        case CONFIG:
            options->config = optarg;
            break;
        case FLASH:
            options->flash = optarg;
            break;
        case APPEND:
            options->append = optarg;
            break;
        case REBOOT:
            options->reboot = true;
            break;
        case UART:
            options->uart = optarg;
            break;
        case CORES:
            ok = parse_number(optarg, &options->cores);
            break;
        case PIE:
            options->pie = true;
            break;
        case TRAP:
            options->trap = true;
            break;
        case MAX_CYCLES:
            ok = parse_number(optarg, &options->max_cycles);
            break;
        case TRACE:
            ok = parse_number(optarg, &options->trace);
            break;
        case REGISTERS:
            options->registers = true;
            break;
        case SUMMARY:
            options->summary = true;
            break;
        case JSON:
            options->json = optarg;
            break;
        case PCS:
            options->pcs = true;
            break;
        case 'h':
        case HELP:
            usage(stdout);
            exit(0);
        default:
            return -1;
        }
        if (!ok) {
            fprintf(stderr, "lx7sim: not a number: %s\n", optarg);
            return -1;
        }
    }
    if (optind != argc - 1) {
        fprintf(stderr, "lx7sim: expected one ELF file; see lx7sim --help\n");
        return -1;
    }
    options->elf = argv[optind];
    return 0;
}

/* ---- the other end of the UART ----------------------------------------------------------------------------- */

static int open_pty(uart_end_t *uart) {
    int master, slave;
    char name[128];
    struct termios raw;
    memset(&raw, 0, sizeof raw);
    cfmakeraw(&raw);
    if (openpty(&master, &slave, name, &raw, NULL)) return -1;
    /* the slave stays open, so that a client may come and go */
    fprintf(stderr, "lx7sim: uart on %s\n", name);
    *uart = (uart_end_t){.in = master, .out = master};
    return 0;
}

static int open_tcp(uart_end_t *uart, const char *port_text) {
    int64_t port;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int yes = 1;
    if (!parse_number(port_text, &port) || port > 65535) {
        errno = EINVAL;
        return -1;
    }
    address.sin_port = htons((uint16_t)port);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0) return -1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1) ||
        getsockname(listener, (struct sockaddr *)&address, &length))
        return -1;
    fprintf(stderr, "lx7sim: uart on tcp port %u, waiting for a connection\n", ntohs(address.sin_port));
    int client = accept(listener, NULL, NULL);
    close(listener);
    if (client < 0) return -1;
    *uart = (uart_end_t){.in = client, .out = client, .is_socket = true};
    return 0;
}

static int open_uart(uart_end_t *uart, const char *kind) {
    *uart = (uart_end_t){.in = -1, .out = -1};
    if (!strcmp(kind, "none")) return 0;
    if (!strcmp(kind, "stdio")) {
        *uart = (uart_end_t){.in = STDIN_FILENO, .out = STDOUT_FILENO};
        return 0;
    }
    int result = -1;
    errno = EINVAL;
    if (!strcmp(kind, "pty"))
        result = open_pty(uart);
    else if (!strncmp(kind, "tcp:", 4))
        result = open_tcp(uart, kind + 4);
    if (result && !interrupted) fprintf(stderr, "lx7sim: --uart %s: %s\n", kind, strerror(errno));
    return result;
}

/* Moves bytes both ways, waiting up to wait_ms for input; false when the other end is gone for good. */
static bool service_uart(lx7_sim_t *sim, uart_end_t *uart, int wait_ms) {
    static uint8_t buffer[1 << 16];
    size_t n;
    while ((n = lx7_uart_receive(sim, buffer, sizeof buffer)) > 0)
        for (size_t at = 0; uart->out >= 0 && at < n && !interrupted;) {
            ssize_t done = write(uart->out, buffer + at, n - at);
            if (done > 0)
                at += (size_t)done;
            else if (errno == EAGAIN)
                poll(&(struct pollfd){.fd = uart->out, .events = POLLOUT}, 1, 100);
            else if (errno != EINTR)
                return false;
        }
    if (uart->in < 0 || uart->end_of_input) {
        if (wait_ms) nanosleep(&(struct timespec){.tv_nsec = wait_ms * 1000000l}, NULL);
        return true;
    }
    struct pollfd fd = {.fd = uart->in, .events = POLLIN};
    if (poll(&fd, 1, wait_ms) <= 0 || !(fd.revents & (POLLIN | POLLHUP))) return true;
    ssize_t got = read(uart->in, buffer, sizeof buffer);
    if (got > 0)
        lx7_uart_send(sim, buffer, (size_t)got);
    else if (got == 0 || (errno != EAGAIN && errno != EINTR && errno != EIO)) {
        uart->end_of_input = true;
        return !uart->is_socket;
    }
    return true;
}

/* ---- tracing and results ------------------------------------------------------------------------------------- */

typedef struct tracer {
    lx7_sim_t *sim;
    int64_t left;
} tracer_t;

static int print_event(void *context, const lx7_event_t *event) {
    tracer_t *tracer = context;
    char text[96];
    if (!lx7_disassemble(tracer->sim, event->pc, text, sizeof text)) snprintf(text, sizeof text, "?");
    fprintf(stderr, "%u %10" PRIu64 " %08x  %-40s", event->core, event->cycle, event->pc, text);
    if (event->waited) fprintf(stderr, " waited %u: %s", event->waited, lx7_stall_name((lx7_stall_t)event->cause));
    fputc('\n', stderr);
    if (--tracer->left <= 0) lx7_set_trace(tracer->sim, NULL, NULL);
    return 0;
}

static void print_warning(void *context, const char *line) {
    (void)context;
    fprintf(stderr, "lx7sim: %s\n", line);
}

static const char *const stop_names[] = {"budget", "exit", "idle", "max-cycles", "error", "break"};

static void print_summary(const lx7_sim_t *sim, int cores, double seconds) {
    for (int core = 0; core < cores; core++) {
        lx7_totals_t totals;
        lx7_get_totals(sim, core, &totals);
        fprintf(stderr, "core %d: %" PRIu64 " instructions, %" PRIu64 " cycles", core, totals.instructions,
                totals.cycles);
        if (totals.instructions)
            fprintf(stderr, ", %.3f cycles/instruction", (double)totals.cycles / (double)totals.instructions);
        fprintf(stderr, ", %.1f M instructions/s\n", (double)totals.instructions / seconds / 1e6);
        for (int i = 0; i < LX7_STALL_COUNT; i++)
            if (totals.stall[i])
                fprintf(stderr, "  stall %-13s %12" PRIu64 "  %5.1f %%\n", lx7_stall_name((lx7_stall_t)i),
                        totals.stall[i], 100.0 * (double)totals.stall[i] / (double)totals.cycles);
    }
}

static void json_arrays(FILE *file, const uint64_t *stall, const uint64_t *access, const uint64_t *bytes) {
    fprintf(file, "\"stall\": {");
    for (int i = 0, first = 1; i < LX7_STALL_COUNT; i++)
        if (stall[i])
            fprintf(file, "%s\"%s\": %" PRIu64, first ? "" : ", ", lx7_stall_name((lx7_stall_t)i), stall[i]), first = 0;
    fprintf(file, "}, \"access\": {");
    for (int i = 0, first = 1; i < LX7_REGION_CLASSES; i++)
        if (access[i])
            fprintf(file, "%s\"%s\": [%" PRIu64 ", %" PRIu64 "]", first ? "" : ", ",
                    lx7_region_name((lx7_region_class_t)i), access[i], bytes[i]),
                first = 0;
    fprintf(file, "}");
}

static void json_core(FILE *file, const lx7_sim_t *sim, int core, bool pcs) {
    lx7_totals_t t;
    lx7_get_totals(sim, core, &t);
    fprintf(file, "    {\"cycles\": %" PRIu64 ", \"instructions\": %" PRIu64 ", ", t.cycles, t.instructions);
    json_arrays(file, t.stall, t.access, t.bytes);
    fprintf(file,
            ",\n     \"icache\": {\"access\": %" PRIu64 ", \"miss\": %" PRIu64 "}, \"dcache\": {\"access\": %" PRIu64
            ", \"miss\": %" PRIu64 ", \"writeback\": %" PRIu64 "},\n     \"exceptions\": %" PRIu64
            ", \"interrupts\": %" PRIu64 ", \"window_overflows\": %" PRIu64 ", \"window_underflows\": %" PRIu64
            ", \"idle_polls\": %" PRIu64 ", \"mac\": %" PRIu64,
            t.icache_access, t.icache_miss, t.dcache_access, t.dcache_miss, t.dcache_writeback, t.exceptions,
            t.interrupts, t.window_overflows, t.window_underflows, t.idle_polls, t.mac);
    size_t n = pcs ? lx7_get_pcs(sim, core, NULL, 0) : 0;
    lx7_pc_t *rows = n ? malloc(n * sizeof *rows) : NULL;
    if (rows) {
        lx7_get_pcs(sim, core, rows, n);
        fprintf(file, ",\n     \"pcs\": [");
        for (size_t i = 0; i < n; i++) {
            fprintf(file, "%s\n      {\"pc\": %u, \"length\": %u, \"count\": %" PRIu64 ", \"taken\": %" PRIu64 ", ",
                    i ? "," : "", rows[i].pc, rows[i].length, rows[i].count, rows[i].taken);
            json_arrays(file, rows[i].stall, rows[i].access, rows[i].bytes);
            fprintf(file, ", \"icache_miss\": %" PRIu64 ", \"dcache_miss\": %" PRIu64 ", \"mac\": %" PRIu64 "}",
                    rows[i].icache_miss, rows[i].dcache_miss, rows[i].mac);
        }
        fprintf(file, "\n     ]");
        free(rows);
    }
    fprintf(file, "}");
}

static int write_json(const lx7_sim_t *sim, const options_t *options, lx7_stop_t stop, double seconds) {
    FILE *file = fopen(options->json, "w");
    if (!file) {
        fprintf(stderr, "lx7sim: %s: %s\n", options->json, strerror(errno));
        return -1;
    }
    fprintf(file, "{\n  \"schema\": \"lx7sim/1\",\n  \"stop\": \"%s\",\n  \"seconds\": %.6f,\n  \"parameters\": {",
            stop_names[stop], seconds);
    for (int i = 0; lx7_parameter_name(i); i++) {
        int64_t value = 0;
        lx7_get_parameter(sim, lx7_parameter_name(i), &value);
        fprintf(file, "%s\n    \"%s\": %" PRId64, i ? "," : "", lx7_parameter_name(i), value);
    }
    fprintf(file, "\n  },\n  \"cores\": [\n");
    for (int core = 0; core < (int)options->cores; core++) {
        if (core) fprintf(file, ",\n");
        json_core(file, sim, core, options->pcs);
    }
    fprintf(file, "\n  ]\n}\n");
    if (fclose(file)) {
        fprintf(stderr, "lx7sim: %s: %s\n", options->json, strerror(errno));
        return -1;
    }
    return 0;
}

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int set_up(lx7_sim_t *sim, const options_t *options) {
    if (lx7_load_config(sim, options->config)) return -1;
    if (lx7_set_option(sim, "pie", options->pie)) return -1;
    if (lx7_set_option(sim, "trap", options->trap)) return -1;
    if (lx7_set_option(sim, "max-cycles", options->max_cycles)) return -1;
    if (options->flash && lx7_load_flash(sim, options->flash)) return -1;
    if (options->append && lx7_set_command_line(sim, options->append)) return -1;
    return lx7_load_elf(sim, options->elf);
}

static lx7_stop_t simulate(lx7_sim_t *sim, uart_end_t *uart, bool reboot) {
    lx7_stop_t stop = LX7_STOP_BUDGET;
    while (!interrupted) {
        stop = lx7_run(sim, SLICE);
        if (!service_uart(sim, uart, stop == LX7_STOP_IDLE ? IDLE_WAIT_MS : 0)) break;
        if (stop == LX7_STOP_IDLE && uart->end_of_input) break;
        if (stop == LX7_STOP_EXIT && reboot) stop = lx7_reboot(sim) ? LX7_STOP_ERROR : LX7_STOP_BUDGET;
        if (stop != LX7_STOP_BUDGET && stop != LX7_STOP_IDLE) break;
    }
    return stop;
}

int main(int argc, char **argv) {
    options_t options;
    uart_end_t uart;
    if (parse_options(argc, argv, &options)) return EXIT_USAGE;
    lx7_sim_t *sim = lx7_new();
    if (!sim) {
        fprintf(stderr, "lx7sim: cannot reserve 4 GB of address space\n");
        return EXIT_FAILED;
    }
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN);
    lx7_set_warning(sim, print_warning, NULL);
    tracer_t tracer = {sim, options.trace};
    if (options.trace) lx7_set_trace(sim, print_event, &tracer);
    int wrong = lx7_set_option(sim, "cores", options.cores) ? EXIT_USAGE : set_up(sim, &options) ? EXIT_FAILED : 0;
    if (wrong) {
        fprintf(stderr, "lx7sim: %s\n", lx7_message(sim));
        lx7_free(sim);
        return wrong;
    }
    if (open_uart(&uart, options.uart)) {
        lx7_free(sim);
        return EXIT_FAILED;
    }
    double start = now();
    lx7_stop_t stop = simulate(sim, &uart, options.reboot);
    double seconds = now() - start;
    int status = stop == LX7_STOP_ERROR ? EXIT_FAILED : stop == LX7_STOP_MAX_CYCLES ? EXIT_MAX_CYCLES : 0;
    fflush(stdout);
    if (status) fprintf(stderr, "lx7sim: %s\n", lx7_message(sim));
    if (options.summary) print_summary(sim, (int)options.cores, seconds);
    for (int core = 0; options.registers && core < (int)options.cores; core++) {
        static char text[8192];
        lx7_dump_registers(sim, core, text, sizeof text);
        fputs(text, stderr);
    }
    if (options.json && write_json(sim, &options, stop, seconds)) status = EXIT_FAILED;
    lx7_free(sim);
    return status;
}
