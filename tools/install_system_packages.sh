#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Install the Debian/Ubuntu packages that the emulated boards need, or name them exactly.
# usage: install_system_packages.sh [lint|fuzz]    "lint": clang-format as well; "fuzz": clang with libFuzzer as well
set -eu

missing=
need() { # need COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need cc gcc
need xtensa-lx106-elf-gcc gcc-xtensa-lx106
need xtensa-lx106-elf-objcopy binutils-xtensa-lx106
need qemu-system-xtensa qemu-system-misc
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
${PYTHON:-python3} -c 'import venv, ensurepip' 2>/dev/null || missing="$missing python3-venv"
[ "${1:-}" != lint ] || need clang-format clang-format
if [ "${1:-}" = fuzz ]; then
    need clang clang
    # The runtime has the compiler's version in its name; 14 is Debian 12's.
    version=$(clang -dumpversion 2>/dev/null || apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-//p')
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' | clang -fsanitize=fuzzer -x c - -o /dev/null 2>/dev/null ||
        missing="$missing libclang-rt-$(echo "${version:-14}" | cut -d. -f1)-dev"
fi
[ -z "$missing" ] && exit 0

if [ "$(id -u)" = 0 ]; then
    root=
elif command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then
    root="sudo -n"
else
    echo "missing system packages; run: sudo apt-get install --no-install-recommends$missing" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "this is no Debian or Ubuntu; install what these packages hold:$missing" >&2
    exit 1
fi
echo "installing:$missing" >&2
# shellcheck disable=SC2086
{ $root apt-get update -qq && DEBIAN_FRONTEND=noninteractive $root apt-get install -y -qq --no-install-recommends $missing; } >&2
