"""What an app relies on, tried in a release by its own Python; one line for each check.

    checks.py PACKED_AT [CHECK ...]

PACKED_AT is where the interpreter was on the machine that packed it: nothing here may refer to it.
It is run as root of a machine of its own: an authority is added to the system's certificates. With
names only those are run, such as `extension`, which needs a C compiler, the interpreter's headers
and setuptools, and is not run otherwise.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import datetime
import http.client
import importlib
import ipaddress
import json
import multiprocessing
import os
import pkgutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

LEFT_OUT = {"idlelib", "lib2to3", "test", "this", "antigravity", "tkinter", "turtle", "turtledemo"}
SERVERS = "/usr/local/share/ca-certificates/bare.crt"


def run(*command: str) -> str:
    """What a command prints; CalledProcessError where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise AssertionError(f"{command[0]} ended with code {done.returncode}: {' '.join(last)}")
    return done.stdout.strip()


def places() -> str:
    """The release and its interpreter are where they were deployed, and nowhere else."""
    assert sys.prefix != sys.base_prefix
    assert "/pythons/" in sys.base_prefix, sys.base_prefix
    outside = [one for one in sys.path[1:] if not one.startswith((sys.prefix, sys.base_prefix))]
    assert not outside, outside
    return f"Python {sys.version.split()[0]} of {sys.base_prefix}"


def references() -> str:
    """No mapped file and no path of the build's options is from the machine that packed it."""
    mapped = Path("/proc/self/maps").read_text()
    assert PACKED_AT not in mapped
    left = {
        name: value
        for name, value in sysconfig.get_config_vars().items()
        if PACKED_AT in str(value) and not name.startswith("WASM_")  # relative to a build
    }
    assert not left, left
    return f"none to {PACKED_AT}"


def library() -> str:
    """Each module of the standard library can be imported."""
    broken, tried = {}, 0
    for module in pkgutil.iter_modules([sysconfig.get_path("stdlib")]):
        if module.name not in LEFT_OUT and not module.name.startswith(("_test", "__")):
            tried += 1
            try:
                importlib.import_module(module.name)
            except Exception as error:
                broken[module.name] = str(error)
    expected = {"msilib", "_aix_support", "_ios_support", "_osx_support", "nturl2path"}
    assert not set(broken) - expected, broken
    return f"{tried} modules"


def compiled_library() -> str:
    """Each compiled module of the standard library can be imported."""
    directory = Path(os.__file__).with_name("lib-dynload")
    names = {path.name.partition(".")[0] for path in directory.glob("*.so")}
    for name in names:
        importlib.import_module(name)
    assert names
    return f"{len(names)} modules"


def pip_check() -> str:
    return run(sys.executable, "-m", "pip", "check")


def packages() -> str:
    """Compiled packages do their work."""
    import cryptography
    import lxml
    import numpy
    import psycopg
    from cryptography.fernet import Fernet
    from lxml import etree
    from psycopg import pq

    matrix = numpy.arange(9.0).reshape(3, 3) + numpy.eye(3) * 10
    assert numpy.allclose(numpy.linalg.inv(matrix) @ matrix, numpy.eye(3))
    assert etree.fromstring("<a><b/></a>").xpath("count(//b)") == 1
    box = Fernet(Fernet.generate_key())
    assert box.decrypt(box.encrypt(b"text")) == b"text"
    assert pq.version() > 0
    versions = (cryptography, lxml, numpy, psycopg)
    return ", ".join(f"{one.__name__} {one.__version__}" for one in versions)


def certificates() -> str:
    """A server is verified by the system's certificates, and one of a stranger is refused."""
    places = ssl.get_default_verify_paths()
    with tempfile.TemporaryDirectory() as directory:
        known, stranger = (_authority(Path(directory, name)) for name in ("known", "stranger"))
        before = ssl.create_default_context().cert_store_stats()["x509_ca"]
        Path(SERVERS).write_bytes(known.read_bytes())
        try:
            run("update-ca-certificates")
            answer = _https(known)
            assert answer == b"hello", answer
            try:
                _https(stranger)
            except ssl.SSLCertVerificationError:
                pass
            else:
                raise AssertionError("a stranger's certificate was accepted")
        finally:
            os.unlink(SERVERS)
            run("update-ca-certificates", "--fresh")
    assert before > 50, f"{before} authorities"
    return f"{ssl.OPENSSL_VERSION}, {before} authorities of {places.openssl_capath}"


def _authority(path: Path) -> Path:
    """A certificate for 127.0.0.1 that has signed itself, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, path.name)])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, True, True, False, False),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    path.with_suffix(".key").write_bytes(
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    path.write_bytes(certificate.public_bytes(encoding))
    return path


def _https(certificate: Path) -> bytes:
    """What a server with this certificate answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            try:
                with context.wrap_socket(server.accept()[0], server_side=True) as peer:
                    peer.recv(4096)
                    peer.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello")
            except OSError:
                pass  # the client did not trust it

        threading.Thread(target=serve, daemon=True).start()
        client = http.client.HTTPSConnection("127.0.0.1", server.getsockname()[1], timeout=10)
        client.request("GET", "/")
        return client.getresponse().read()


def database() -> str:
    with tempfile.NamedTemporaryFile() as file, sqlite3.connect(file.name) as connection:
        connection.execute("create virtual table t using fts5 (a)")
        connection.execute("insert into t values ('some words')")
        assert connection.execute("select count(*) from t where t match 'words'").fetchone() == (1,)
    return f"SQLite {sqlite3.sqlite_version}"


def foreign_functions() -> str:
    name = ctypes.util.find_library("c")
    assert name is not None, "find_library does not find libc"
    assert ctypes.CDLL(name).getpid() == os.getpid()
    return name


def nested_virtualenv() -> str:
    """A virtualenv that is made in the release runs on the same interpreter, with pip."""
    with tempfile.TemporaryDirectory() as directory:
        run(sys.executable, "-m", "venv", directory)
        base = run(f"{directory}/bin/python", "-c", "import sys; print(sys.base_prefix)")
        assert base == sys.base_prefix, base
        return " ".join(run(f"{directory}/bin/pip", "--version").split()[:2])


def subprocesses() -> str:
    """Children run on the release too, however they are started."""
    assert run(sys.executable, "-c", "import sys; print(sys.prefix)") == sys.prefix
    for method in ("spawn", "forkserver", "fork"):
        context = multiprocessing.get_context(method)
        with context.Pool(1) as pool:
            assert pool.apply(os.getpid) != os.getpid()
    return "spawn, forkserver, fork"


def tracebacks() -> str:
    """They have the source lines of the standard library, from where it is now."""
    try:
        json.loads("{")
    except ValueError:
        text = traceback.format_exc()
    assert f'"{sys.base_prefix}/lib/' in text, text
    assert "obj, end = self." in text, text
    return "with source lines"


def build_options() -> str:
    """The paths that compile modules for it exist."""
    paths = sysconfig.get_paths()
    wanted = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "include")]
    wanted += [sysconfig.get_config_var(name) for name in ("LIBDIR", "LIBPL", "INCLUDEPY")]
    wanted += [sysconfig.get_makefile_filename(), sysconfig.get_config_h_filename()]
    missing = [path for path in wanted if not os.path.exists(path)]
    assert not missing, missing
    return f"{len(wanted)} paths"


def time_zones() -> str:
    import zoneinfo

    zone = zoneinfo.ZoneInfo("Europe/Berlin")
    assert datetime.datetime(2024, 7, 1, tzinfo=zone).utcoffset() == datetime.timedelta(hours=2)
    return "Europe/Berlin"


def gunicorn() -> str:
    """It answers, from a worker of its own."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "app.py").write_text(
            "import sys\ndef app(environ, start):\n"
            "    start('200 OK', [])\n    return [sys.base_prefix.encode()]\n"
        )
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        program = os.path.join(sys.prefix, "bin", "gunicorn")
        server = subprocess.Popen(
            [program, "--chdir", directory, "--bind", f"127.0.0.1:{port}", "app:app"],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            answer = _answer(port, server)
        finally:
            server.terminate()
            server.communicate(timeout=30)
    assert answer == sys.base_prefix, answer
    return "answers"


def _answer(port: int, server: subprocess.Popen[str]) -> str:
    deadline = time.monotonic() + 30
    while True:
        try:
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            client.request("GET", "/")
            return client.getresponse().read().decode()
        except ConnectionRefusedError:
            if server.poll() is not None:
                raise AssertionError(f"it ended: {server.communicate()[1][-300:]}") from None
            assert time.monotonic() < deadline, "it does not answer"
            time.sleep(0.1)


def extension() -> str:
    """pip compiles an sdist with a C extension for this Python, which then runs."""
    with tempfile.TemporaryDirectory() as directory:
        source, target = Path(directory, "answer-1.0"), Path(directory, "target")
        source.mkdir()
        (source / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: answer\nVersion: 1.0\n")
        (source / "setup.py").write_text(
            "from setuptools import Extension, setup\n"
            "setup(name='answer', version='1.0', py_modules=[],\n"
            "      ext_modules=[Extension('answer', ['answer.c'])])\n"
        )
        (source / "answer.c").write_text(
            "#include <Python.h>\n"
            "static PyObject *ask(PyObject *self, PyObject *none) {\n"
            "    return PyLong_FromLong(42);\n}\n"
            'static PyMethodDef methods[] = {{"ask", ask, METH_NOARGS, 0}, {0}};\n'
            "static struct PyModuleDef module = {\n"
            '    PyModuleDef_HEAD_INIT, "answer", 0, -1, methods};\n'
            "PyMODINIT_FUNC PyInit_answer(void) { return PyModule_Create(&module); }\n"
        )
        sdist = f"{source}.tar.gz"
        run("tar", "-czf", sdist, "-C", directory, source.name)
        offline = ("--no-build-isolation", "--no-deps", "--no-index", "--target", str(target))
        run(sys.executable, "-m", "pip", "install", "-q", *offline, sdist)
        sys.path.insert(0, str(target))
        assert importlib.import_module("answer").ask() == 42
        (built,) = target.glob("answer*.so")
    return built.name


CHECKS: tuple[Callable[[], str], ...] = (
    places,
    references,
    library,
    compiled_library,
    pip_check,
    packages,
    certificates,
    database,
    foreign_functions,
    nested_virtualenv,
    subprocesses,
    tracebacks,
    build_options,
    time_zones,
    gunicorn,
)


def main(names: list[str]) -> int:
    wanted = [check for check in (*CHECKS, extension) if check.__name__ in names]
    failed = 0
    for check in wanted or CHECKS:
        try:
            line = f"ok      {check.__name__}: {check()}"
        except Exception as error:
            failed += 1
            line = f"FAILED  {check.__name__}: {type(error).__name__}: {error}"
        print(line, flush=True)
    print(f"{len(wanted or CHECKS) - failed} of {len(wanted or CHECKS)} checks passed")
    return 1 if failed else 0


if __name__ == "__main__":
    PACKED_AT = sys.argv[1]
    sys.exit(main(sys.argv[2:]))
