# SPDX-License-Identifier: Apache-2.0
"""What .github/SECURITY.md promises: signatures, nothing that runs code, sizes bounded, no shell, no secrets shown."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import pickle
import resource
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from link_boards import tiny_model

from tvhil.boards import load_board
from tvhil.boards.board import boards_dir
from tvhil.cli import main
from tvhil.datasets.archives import open_tree
from tvhil.errors import CheckpointError, DatasetError, ExitCode, InputError, MissingToolError
from tvhil.models.checkpoints import read_checkpoint
from tvhil.packing import ModelError, Status, read_model, signing
from tvhil.packing.signing import SignatureError

ROOT = Path(__file__).resolve().parents[2]
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))


def run(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def model_file(tmp_path):
    path = tmp_path / "m.tvit"
    path.write_bytes(tiny_model())
    return path


@pytest.fixture
def keys(tmp_path):
    """A private key file and its public half."""
    private = tmp_path / "lab.key"
    return private, signing.write_key(KEY, private)


# --- signatures ------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_what_is_signed_verifies_with_its_key_and_no_other(model):
    signature = signing.sign(model, KEY)
    trusted = [OTHER.public_key(), KEY.public_key()]
    assert signing.verify(model, signature, trusted, "m") == signing.fingerprint(KEY.public_key())
    with pytest.raises(SignatureError, match="not among the trusted keys"):
        signing.verify(model, signature, [OTHER.public_key()], "m")
    with pytest.raises(SignatureError, match="not among the trusted keys"):
        signing.verify(model, signature, [], "m")


@given(st.binary(min_size=1, max_size=200), st.data())
def test_a_changed_model_or_signature_is_refused(model, data):
    bit = data.draw(st.integers(0, 8 * len(model) - 1))
    changed = bytearray(model)
    changed[bit // 8] ^= 1 << bit % 8
    fields = json.loads(signing.sign(model, KEY))
    with pytest.raises(SignatureError, match="was changed"):
        signing.verify(bytes(changed), signing.sign(model, KEY), [KEY.public_key()], "m")
    # Told the hash of the changed file, the signature itself does not fit.
    told = {**fields, "sha256": json.loads(signing.sign(bytes(changed), OTHER))["sha256"]}
    with pytest.raises(SignatureError, match="forged or damaged"):
        signing.verify(bytes(changed), json.dumps(told).encode(), [KEY.public_key()], "m")
    # Another's signature under the name of the trusted key.
    forged = {**fields, "signature": json.loads(signing.sign(model, OTHER))["signature"]}
    with pytest.raises(SignatureError, match="forged or damaged"):
        signing.verify(model, json.dumps(forged).encode(), [KEY.public_key()], "m")


def test_the_signature_is_ed25519_over_the_context_and_the_sha_256_of_the_file():
    fields = json.loads(signing.sign(b"content", KEY))
    message = b"tvhil model signature v1\0" + hashlib.sha256(b"content").digest()
    KEY.public_key().verify(bytes.fromhex(fields["signature"]), message)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "[" * 50_000, '{"schema": "tvhil.signature/2"}', "\xff", "x" * 70_000]
)
def test_a_malformed_signature_is_refused(text):
    with pytest.raises(SignatureError, match="malformed"):
        signing.verify(b"m", text.encode("latin-1"), [KEY.public_key()], "m")


@pytest.fixture
def open_umask():
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_keys_are_made_privately_never_overwritten_and_never_shown(tmp_path, capsys):
    path = tmp_path / "new" / "lab.key"
    assert run("keygen", path, "--json", tmp_path / "k.json") == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    secret = path.read_text().splitlines()[1]
    before = path.read_bytes()
    assert run("keygen", path) == ExitCode.USAGE
    assert path.read_bytes() == before
    model = tmp_path / "m.tvit"
    model.write_bytes(tiny_model())
    assert run("sign", model, "--key", path) == 0
    shown = capsys.readouterr()
    written = b"".join(p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p != path)
    assert "never overwritten" in shown.err
    assert secret not in shown.out + shown.err
    assert secret.encode() not in written
    assert signing.read_private_key(path).private_bytes_raw().hex() not in shown.out + shown.err


def test_a_model_is_signed_and_checked_from_the_command_line(model_file, keys, tmp_path, capsys):
    private, public = keys
    assert run("sign", model_file, "--check", public) == ExitCode.BAD_INPUT
    assert "is not signed" in capsys.readouterr().err
    assert run("sign", model_file, "--key", private, "--json", tmp_path / "s.json") == 0
    assert json.loads((tmp_path / "s.json").read_text())["key"] == signing.fingerprint(KEY.public_key())
    assert run("sign", model_file, "--check", public) == 0
    other = tmp_path / "other.pub"
    other.write_bytes(signing.public_pem(OTHER.public_key()))
    assert run("sign", model_file, "--check", other) == ExitCode.BAD_INPUT
    assert run("sign", model_file, "--check", other, "--check", public) == 0
    model_file.write_bytes(tiny_model()[:-1] + b"\1")
    assert run("sign", model_file, "--check", public) == ExitCode.BAD_INPUT
    assert run("sign", model_file, "--key", private) == ExitCode.BAD_INPUT  # not a model any more


@pytest.mark.parametrize("command", ["run-eval", "flash", "profile"])
def test_commands_refuse_an_unsigned_model_before_they_read_it(command, model_file, keys, capsys):
    _, public = keys
    model_file.write_bytes(tiny_model()[:64] + b"\0" * 100)  # malformed, but that is not what is told
    arguments = {"run-eval": ["digits", "--board", "native"], "flash": ["--board", "native"], "profile": []}[command]
    code = run(command, *arguments, "--model", model_file, "--require-signature", public)
    error = capsys.readouterr().err
    assert code == ExitCode.BAD_INPUT
    assert "is not signed" in error
    assert error.count("\n") == 1


def test_a_signed_model_runs_where_a_signature_is_required(model_file, keys, tmp_path):
    private, public = keys
    assert run("sign", model_file, "--key", private) == 0
    code = run(
        "run-eval", "synthetic", "--limit", 2, "--board", "native", "--model", model_file,
        "--require-signature", public, "--json", tmp_path / "r.json",
    )  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "r.json").read_text())["logits"]["bit_exact"] == 2


@pytest.mark.parametrize("command", ["run-eval", "flash", "bench"])
def test_a_board_whose_file_names_trusted_keys_takes_signed_models_only(command, model_file, keys, tmp_path, capsys):
    private, public = keys
    board = tmp_path / "guarded.toml"
    text = (boards_dir() / "native.toml").read_text().replace('name = "native"', 'name = "guarded"')
    board.write_text(f'trusted_keys = ["{public.name}"]\n{text}')
    assert load_board(board).trusted_key_files == (public,)
    first = ["synthetic", "--limit", 1, "--json", tmp_path / "r.json"] if command == "run-eval" else []
    arguments = [command, *first, "--board", board, "--model", model_file]
    assert run(*arguments) == ExitCode.BAD_INPUT
    assert "is not signed" in capsys.readouterr().err
    assert run("sign", model_file, "--key", private) == 0
    assert run(*arguments) == 0


def test_the_labgrid_driver_gives_a_guarded_board_signed_files_only(model_file, keys, tmp_path):
    driver = pytest.importorskip("tvhil.rack.labgrid_driver", reason="labgrid is not installed (pip install labgrid)")
    private, public = keys
    path = tmp_path / "guarded.toml"
    text = (boards_dir() / "native.toml").read_text().replace('name = "native"', 'name = "guarded"')
    path.write_text(f'trusted_keys = ["{public.name}"]\n{text}')
    guarded, open_to_all = load_board(path), load_board("native")
    read = driver.model_for(open_to_all, model_file)
    assert driver.model_for(open_to_all, read) is read
    with pytest.raises(InputError, match="signed models only"):
        driver.model_for(guarded, read)
    with pytest.raises(SignatureError, match="is not signed"):
        driver.model_for(guarded, str(model_file))
    assert run("sign", model_file, "--key", private) == 0
    assert driver.model_for(guarded, model_file).signature == read.signature


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "malformed"),
        (b"-----BEGIN PRIVATE KEY-----\n", "is a private key"),
        (b"x" * 100_000, "too large"),
    ],
)
def test_a_file_that_is_no_public_key_is_refused(content, message, tmp_path):
    path = tmp_path / "key.pub"
    path.write_bytes(content)
    with pytest.raises(SignatureError, match=message):
        signing.read_trusted_keys([path])


def test_keys_of_another_kind_open_keys_and_absent_ones_are_refused(tmp_path):
    other = rsa.generate_private_key(65537, 2048)
    private, public = tmp_path / "rsa.key", tmp_path / "rsa.pub"
    private.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    private.chmod(0o600)
    public.write_bytes(other.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    with pytest.raises(SignatureError, match="not Ed25519"):
        signing.read_trusted_keys([public])
    with pytest.raises(SignatureError, match="no Ed25519 key"):
        signing.read_private_key(private)
    private.chmod(0o644)
    with pytest.raises(SignatureError, match="chmod 600"):
        signing.read_private_key(private)
    with pytest.raises(SignatureError, match="cannot read"):
        signing.read_trusted_keys([tmp_path / "absent"])
    (tmp_path / "none").write_bytes(b"nothing")
    (tmp_path / "none").chmod(0o600)
    with pytest.raises(SignatureError, match="no private key in PEM"):
        signing.read_private_key(tmp_path / "none")


def test_without_the_library_the_package_to_install_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric", None)
    with pytest.raises(MissingToolError, match="pip install"):
        signing.generate_key()


# --- files that would run code, unpack to anything, or lead outside ---------------------------------------------


class _Code:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("make", ["torch", "legacy", "pickle"])
def test_code_in_a_checkpoint_is_never_run(make, tmp_path):
    file, mark = tmp_path / "c.pth", tmp_path / "ran"
    content = {"model": {"head.weight": torch.zeros(1)}, "args": _Code(mark)}
    if make == "pickle":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file, _use_new_zipfile_serialization=make == "torch")
    with pytest.raises(CheckpointError):
        read_checkpoint(file)
    assert not mark.exists()


def test_a_checkpoint_that_unpacks_to_more_than_it_holds_is_refused_before_it_is_unpacked(tmp_path):
    plain, packed = io.BytesIO(), tmp_path / "bomb.pth"
    torch.save({"w": torch.zeros(1 << 20)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="compressed archive"):
        read_checkpoint(packed)


@pytest.mark.parametrize("tensor", [torch.zeros(1).expand(1 << 20, 1 << 20), torch.eye(3).to_sparse()])
def test_a_tensor_that_claims_more_room_than_its_file_is_refused(tensor, tmp_path):
    file = tmp_path / "view.pth"
    torch.save({"pos_embed": tensor}, file)
    with pytest.raises(CheckpointError, match="larger than the file, or no plain tensor"):
        read_checkpoint(file)


def test_a_model_file_of_any_size_is_refused_without_reading_it(tmp_path):
    file = tmp_path / "large.tvit"
    for start, status in ((b"TVIT", Status.BAD_SIZE), (b"none", Status.BAD_MAGIC)):
        with file.open("wb") as stream:
            stream.write(start + bytes(60))
            stream.truncate(1 << 40)  # sparse
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with pytest.raises(ModelError) as refused:
            read_model(file)
        assert refused.value.status is status
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # KiB


def test_a_member_that_announces_more_than_the_archive_holds_takes_no_memory(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(1 << 20))
    data = bytearray(file.read_bytes())
    central = data.rindex(b"PK\1\2")
    struct.pack_into("<I", data, central + 24, 0xFFFFFFF0)  # size when unpacked
    file.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(DatasetError):
        assert len(open_tree(file).read("a.png")) <= 1 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 96 << 10


# --- the sources -----------------------------------------------------------------------------------------------

_PROCESSES = {"run", "Popen", "call", "check_call", "check_output"}


def _calls():
    for folder in ("host/tvhil", "tools", "hil_tests"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", ast.unparse(node.func), node


def test_no_source_runs_a_shell_or_code_from_a_file():
    found, processes = [], 0
    for place, name, node in _calls():
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name.startswith("subprocess.") and name.partition(".")[2] in _PROCESSES:
            processes += 1
            texts = (ast.Constant, ast.JoinedStr, ast.BinOp)
            if keywords.get("shell", "False") != "False" or (node.args and isinstance(node.args[0], texts)):
                found.append(f"{place} a shell string")
        never = ("os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "marshal.loads", "shelve.open",
                 "yaml.load", "joblib.load", "tempfile.mktemp")  # fmt: skip
        if name in never or name.endswith((".extractall", ".extract")):
            found.append(f"{place} {name}")
        if name == "torch.load" and keywords.get("weights_only") != "True":
            found.append(f"{place} torch.load")
        if name in ("np.load", "numpy.load") and keywords.get("allow_pickle") != "False":
            found.append(f"{place} np.load")
    assert found == []
    assert processes > 5


def test_the_scripts_quote_what_they_expand():
    for path in (ROOT / "tools" / "install_system_packages.sh", ROOT / ".ci" / "run"):
        text = path.read_text()
        assert "eval " not in text
        assert "curl" not in text
        subprocess.run(["bash", "-n", path], check=True)


def test_the_policy_is_where_hosts_of_repositories_look_for_it():
    text = (ROOT / ".github" / "SECURITY.md").read_text()
    for word in ("weights_only", "tvhil sign", "trusted_keys", "--require-signature", "make fuzz", "Report"):
        assert word in text
