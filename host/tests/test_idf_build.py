# SPDX-License-Identifier: Apache-2.0
"""Building a firmware of ESP-IDF: what PlatformIO and idf.py are told, what is kept, what failures are told as."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap

import pytest

from tvhil.boards import IdfBuildError, build_idf, built_firmware, idf_build, list_boards, load_board, startup_code
from tvhil.cli import main
from tvhil.errors import ExitCode, MissingToolError, UsageError
from tvhil.runtime import device_dir

CHIPS = [board.name for board in list_boards([]) if board.idf is not None]


@pytest.fixture(autouse=True)
def own_build_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("TVHIL_BUILD_DIR", str(tmp_path / "build"))


@pytest.fixture
def esp32s3():
    return load_board("esp32s3")


@pytest.fixture
def platformio(tmp_path, monkeypatch):
    """Puts a program in PlatformIO's place."""

    def become(body: str) -> None:
        script = tmp_path / "pio.py"
        script.write_text(
            textwrap.dedent(
                """\
                import os, pathlib, sys
                environment = sys.argv[sys.argv.index("--environment") + 1]
                made = pathlib.Path(os.environ["PLATFORMIO_BUILD_DIR"], environment)
                made.mkdir(parents=True, exist_ok=True)
                """
            )
            + textwrap.dedent(body)
        )
        real = idf_build._platformio

        def command(board, build_id):
            words, outputs = real(board, build_id)
            return [words[0], str(script), *words[3:]], outputs

        monkeypatch.setattr(idf_build, "_platformio", command)

    return become


GOOD = """
    print("Compiling .pio/build/x/src/main.o", flush=True)
    print("[2/7] Building C object esp-idf/tvit/gemm.c.obj", flush=True)
    for name in ("bootloader", "partitions", "firmware"):
        (made / f"{name}.bin").write_text(f"{name} {os.environ['TVIT_BUILD_ID']}")
"""


def test_a_firmware_is_built_once_and_kept_by_the_hash_of_its_sources(esp32s3, platformio, tmp_path):
    platformio(GOOD)
    seen = []
    assert built_firmware(esp32s3) is None
    first = build_idf(esp32s3, lambda *step: seen.append(step))
    assert first.fresh
    assert seen == [(1, 0, "main.o"), (2, 7, "gemm.c.obj")]
    assert first.bootloader.read_text() == f"bootloader {first.build_id}"
    assert first.app.read_text() == f"firmware {first.build_id}"
    again = build_idf(esp32s3, lambda *_: pytest.fail("nothing is to be built"))
    assert (again.fresh, again.build_id) == (False, first.build_id)
    assert built_firmware(esp32s3) == again
    assert (esp32s3.build_dir / "build.log").read_text().count("\n") == 2
    assert build_idf(load_board("esp32s3-n8")).build_id != first.build_id


def test_old_firmware_is_forgotten(esp32s3, platformio, monkeypatch):
    platformio(GOOD)
    for state in range(6):
        monkeypatch.setattr(idf_build, "_digest", lambda _, state=state: f"{state:016x}")
        build_idf(esp32s3)
    assert len(list(esp32s3.build_dir.glob("idf-*"))) == 4


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (
            "HTTPClientError: Temporary failure in name resolution",
            IdfBuildError,
            "no network: the first build",
        ),
        (
            "No module named 'esp_idf_monitor'\nPlease use idf.py only in an ESP-IDF shell environment.",
            MissingToolError,
            "its Python packages are not: run ESP-IDF's install.sh",
        ),
        ("OSError: [Errno 28] No space left on device", IdfBuildError, "the disk is full: free some GB"),
        ("sh: 1: xtensa-esp32s3-elf-gcc: not found", MissingToolError, "the toolchain is missing"),
        ("UnknownPackageError: Could not find the package", MissingToolError, "the toolchain is missing"),
        (
            "main/line.c:12:5: error: unknown type name 'foo'\nninja: failed",
            IdfBuildError,
            "main/line.c:12: unknown",
        ),
        (
            "ld: region `iram0_0_seg' overflowed by 812 bytes",
            IdfBuildError,
            "does not fit into the chip's .*812",
        ),
        (
            "ld: The arena does not fit: code and data in SRAM leave less than 9.5 KB for the heap below it (arena.ld)."
            "\ncollect2: error: ld returned 1 exit status",
            IdfBuildError,
            r"does not fit into the chip's memory \(The arena does not fit: code .* the heap below it\); log: ",
        ),
        ("Error: app partition is too small for binary", IdfBuildError, "larger than its partition"),
        ("collect2: error: ld returned 1 exit status", IdfBuildError, r"failed \(exit 3\): collect2: error"),
        ("", IdfBuildError, "it printed nothing"),
    ],
)
def test_a_failure_is_told_in_one_line_with_the_log(esp32s3, platformio, said, error, message):
    platformio(f"print({said!r})\nsys.exit(3)\n")
    with pytest.raises(error, match=message) as caught:
        build_idf(esp32s3)
    assert str(caught.value).startswith("esp32s3: ")
    assert str(esp32s3.build_dir / "build.log") in str(caught.value)
    assert said in (esp32s3.build_dir / "build.log").read_text()
    assert built_firmware(esp32s3) is None


def test_a_build_that_leaves_no_image_is_refused(esp32s3, platformio):
    platformio("print('fine')\n")
    with pytest.raises(IdfBuildError, match=r"the build made no .*bootloader\.bin"):
        build_idf(esp32s3)


def test_without_idf_py_it_is_told_how_to_get_it(esp32s3, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(MissingToolError, match=r"idf\.py is not in the PATH"):
        build_idf(esp32s3, builder="idf")
    with pytest.raises(UsageError, match="known: platformio, idf"):
        build_idf(esp32s3, builder="make")


def test_idf_py_is_told_board_target_and_defaults(esp32s3, tmp_path, monkeypatch):
    program = tmp_path / "idf.py"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys\n"
        "made = pathlib.Path(sys.argv[sys.argv.index('-B') + 1])\n"
        "for name in ('bootloader/bootloader', 'partition_table/partition-table', 'tvhil'):\n"
        "    path = made / f'{name}.bin'; path.parent.mkdir(parents=True, exist_ok=True); path.write_text(name)\n"
        "print('\\n'.join(sys.argv))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(IdfBuildError, match=r"the build made no .*tvhil\.map"):
        build_idf(esp32s3, builder="idf")
    program.write_text(program.read_text() + "(made / 'tvhil.map').touch()\n")
    monkeypatch.setattr(startup_code, "startup_calls", lambda map_file: [])
    firmware = build_idf(esp32s3, builder="idf")
    told = (esp32s3.build_dir / "build.log").read_text().splitlines()
    project = device_dir() / "ports" / "esp_idf"
    assert {"-DTVIT_BOARD=esp32s3", "-DIDF_TARGET=esp32s3", f"-DTVIT_BUILD_ID={firmware.build_id}"} <= set(told)
    assert f"-DSDKCONFIG_DEFAULTS={';'.join(str(project / name) for name in esp32s3.idf.defaults)}" in told
    assert told[-1] == "build"
    assert firmware.app.read_text() == "tvhil"


def test_a_firmware_that_can_call_what_its_first_model_overwrites_is_not_kept(esp32s3, tmp_path, monkeypatch):
    images = ("bootloader/bootloader.bin", "partition_table/partition-table.bin", "tvhil.bin", "tvhil.map")
    for name in images:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    outputs = tuple(tmp_path / name for name in images[:3])
    monkeypatch.setattr(idf_build, "_idf", lambda board, build_id: (["true"], outputs))
    ways = {tmp_path / "tvhil.map": ["flash_mmap:spi_flash_mmap < main:idle"]}
    monkeypatch.setattr(startup_code, "startup_calls", ways.__getitem__)
    with pytest.raises(IdfBuildError, match=r"overwrites: flash_mmap:spi_flash_mmap < main:idle \(1 such ways"):
        build_idf(esp32s3, builder="idf")
    assert built_firmware(esp32s3) is None
    ways[tmp_path / "tvhil.map"] = []
    assert build_idf(esp32s3, builder="idf").app.read_text() == "tvhil.bin"


def test_the_command_tells_the_hash_and_where_the_firmware_lies(platformio, tmp_path, capsys):
    platformio(GOOD)
    out = tmp_path / "b.json"
    assert main(["build", "--board", "esp32s3", "--json", str(out)]) == ExitCode.OK
    assert json.loads(out.read_text())["firmware"].endswith("tvhil.bin")
    assert "built now" in capsys.readouterr().out


# --- platformio.ini --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def configuration(tmp_path_factory):
    """device/platformio.ini as PlatformIO itself reads it."""
    environment = {
        **os.environ,
        "PLATFORMIO_CORE_DIR": str(tmp_path_factory.mktemp("core")),
        "PLATFORMIO_SETTING_ENABLE_TELEMETRY": "No",
    }
    done = subprocess.run(
        [sys.executable, "-m", "platformio", "project", "config", "--lint", "-d", str(device_dir())],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert "free from linting errors" in done.stdout, done.stdout + done.stderr
    done = subprocess.run(
        [sys.executable, "-m", "platformio", "project", "config", "--json-output", "-d", str(device_dir())],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    return {name: dict(options) for name, options in json.loads(done.stdout)}


def test_every_board_of_the_chip_has_its_environment(configuration):
    environments = {name.removeprefix("env:") for name in configuration if name.startswith("env:")}
    assert environments == {load_board(name).idf.environment for name in CHIPS} == set(CHIPS)


@pytest.mark.parametrize("name", CHIPS)
def test_an_environment_says_what_the_board_file_says(configuration, name):
    board, told = load_board(name), configuration[f"env:{name}"]
    arguments = dict(word.split("=", 1) for word in told["board_build.cmake_extra_args"].split())
    project = board.idf.project
    assert arguments["-DTVIT_BOARD"] == name
    assert arguments["-DSDKCONFIG_DEFAULTS"].split(";") == [f"{project}/{file}" for file in board.idf.defaults]
    assert told["board_build.partitions"] == f"{project}/{board.flash.partitions}"
    assert told["board_upload.flash_size"] == f"{board.flash.size >> 20}MB"
    assert told["framework"] == ["espidf"]
    assert told["board_build.esp-idf.sdkconfig_path"].endswith(f"/build/{name}/sdkconfig"), "not beside the sources"
    assert told["board_build.esp-idf.preserve_source_file_extension"] == "yes"
    assert all((device_dir() / file).is_file() for file in arguments["-DSDKCONFIG_DEFAULTS"].split(";"))
