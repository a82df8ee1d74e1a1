"""Brings what is missing: Debian packages, Maven artifacts, a Go toolchain. Each only once."""

import fcntl
import os
import re
import shutil
import subprocess
import threading
from contextlib import contextmanager
from pathlib import Path

from settings import Failure

TIMEOUT_S = 900
_apt = threading.Lock()


def run(command, log, what, cwd=None, env=None):
    """Runs a step of an installation; its output goes to `log`."""
    try:
        with open(log, "ab") as output:
            done = subprocess.run(
                [str(part) for part in command], cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, timeout=TIMEOUT_S)
        failed = done.returncode != 0
    except (OSError, subprocess.TimeoutExpired) as error:
        Path(log).write_text(f"{error}\n")
        failed = True
    if failed:
        end = "\n".join(Path(log).read_text(errors="replace").splitlines()[-8:])
        raise Failure(f"cannot {what}: is there a network, and does it reach the package sources? The end of {log}:\n{end}")


def packages(settings, names):
    """Installs Debian packages. Their services are not started: ours run beside them."""
    with _apt:
        log = settings.logs / "apt.log"
        sudo = [] if os.geteuid() == 0 else ["sudo"]
        env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        if not shutil.which("apt-get"):
            raise Failure(f"this is no Debian; install {' '.join(names)} by hand")
        apt = [*sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-o", "DPkg::Lock::Timeout=300", "-qq"]
        run([*apt, "update"], log, "read the package lists", env=env)
        with services_stay_down(sudo):
            run([*apt, "install", "-y", "--no-install-recommends", *names], log, f"install {' '.join(names)}", env=env)


@contextmanager
def services_stay_down(sudo):
    """Debian's way to say that installed services must not start."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    subprocess.run([*sudo, "tee", str(policy)], input=b"#!/bin/sh\nexit 101\n", stdout=subprocess.DEVNULL, check=True)
    subprocess.run([*sudo, "chmod", "755", str(policy)], check=True)
    try:
        yield
    finally:
        subprocess.run([*sudo, "rm", "-f", str(policy)], check=True)


def java(settings):
    if not shutil.which("java"):
        packages(settings, ["default-jre-headless"])


def maven(settings):
    java(settings)
    if not shutil.which("mvn"):
        packages(settings, ["maven"])


@contextmanager
def once(marker):
    """Yields whether there is something to do, and notes it as done when that went well."""
    marker.parent.mkdir(parents=True, exist_ok=True)
    with open(marker.parent / f".{marker.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        todo = not marker.exists()
        yield todo
        if todo:
            marker.touch()


def go(settings):
    """A Go that is new enough: the machine's, or a toolchain fetched as the Go module it is."""
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found and go_version(found) >= (1, 21):
        # From 1.21 on, Go fetches what a module asks for by itself.
        return found
    if not found:
        packages(settings, ["golang-go"])
        found = "go"
    return go_toolchain(settings, found)


def go_version(path):
    text = subprocess.run([path, "version"], capture_output=True, text=True, check=False).stdout
    match = re.search(r"go(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def go_toolchain(settings, bootstrap):
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine)
    if not arch:
        raise Failure(f"no Go toolchain is known for {os.uname().machine}; install Go {settings['GO_VERSION']}")
    module = f"golang.org/toolchain@v0.0.1-go{settings['GO_VERSION']}.linux-{arch}"
    path = settings.cache / "go" / module
    with once(settings.cache / f"go-{settings['GO_VERSION']}") as todo:
        if todo:
            env = {**os.environ, "GOMODCACHE": str(settings.cache / "go"), "GOFLAGS": "-modcacherw"}
            run([bootstrap, "mod", "download", module], settings.logs / "go-fetch.log", "fetch the Go toolchain",
                cwd="/", env=env)
            # Module files are not executable; a toolchain's programs have to be.
            for program in [*path.glob("bin/*"), *path.glob("pkg/tool/*/*")]:
                program.chmod(0o755)
    return str(path / "bin" / "go")
