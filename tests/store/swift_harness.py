"""A real S3 server on loopback: OpenStack Swift with its s3api, as four processes with all data in one folder.

To start it by hand, or for a container: `python -m tests.store.swift_harness --dir FOLDER [--port PORT]` prints the
variables that boto3 and `tabpfn-serve` need, and serves until it is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

ACCESS_KEY, SECRET_KEY, REGION = "test:tester", "testing", "us-east-1"
STARTS_WITHIN_S = 180.0

# Swift looks for swift.conf in /etc, unless these names are set before it reads the file.
_LAUNCH = """
import ctypes
import sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG: the server ends with the tests, even if they are killed
import swift.common.utils
import swift.common.utils.config
name, folder = sys.argv[1], sys.argv[2]
conf = f"{folder}/swift.conf"
swift.common.utils.SWIFT_CONF_FILE = conf
swift.common.utils.config.SWIFT_CONF_FILE = conf
swift.common.utils.validate_configuration()
import importlib
main = importlib.import_module("swift.obj.server" if name == "object" else f"swift.{name}.server").main
sys.argv = [f"swift-{name}-server", f"{folder}/{name}-server.conf"]
sys.exit(main())
"""

_RINGS = """
import sys
from swift.common.ring import RingBuilder
for name, port in (argument.split("=") for argument in sys.argv[1:]):
    builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
    place = {"ip": "127.0.0.1", "port": int(port), "device": "d1"}
    builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, **place})
    builder.rebalance()
    builder.get_ring().save(f"{name}.ring.gz")
"""

_SWIFT_CONF = """
[swift-hash]
swift_hash_path_prefix = tests
swift_hash_path_suffix = tests
[storage-policy:0]
name = only
default = yes
"""

_DEFAULTS = """
[DEFAULT]
bind_ip = {host}
bind_port = {port}
workers = 0
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
disable_fallocate = true
log_level = WARNING
log_address = {folder}/no-syslog
"""

_STORAGE = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors gatekeeper healthcheck cache listing_formats s3api tempauth copy slo dlo versioned_writes symlink proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:versioned_writes]
use = egg:swift#versioned_writes
allow_versioned_writes = true
allow_object_versioning = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:gatekeeper]
use = egg:swift#gatekeeper
[filter:healthcheck]
use = egg:swift#healthcheck
[filter:cache]
use = egg:swift#memcache
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:symlink]
use = egg:swift#symlink
"""  # noqa: E501


class Swift:
    """The server. Uploaded objects survive `kill` and the next `start`."""

    def __init__(self, folder: Path, port: int = 0, host: str = "127.0.0.1") -> None:
        self.folder = folder
        self._host = host
        self._ports = {name: _free_port() for name in ("account", "container", "object")}
        self.port = self._ports["proxy"] = port or _free_port()
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables that a client needs, and no other source of credentials."""
        return {**client_environment(ACCESS_KEY, SECRET_KEY), "AWS_ENDPOINT_URL_S3": self.endpoint}

    def start(self) -> None:
        if not (self.folder / "swift.conf").exists():
            self._configure()
        for name in self._ports:
            log = (self.folder / f"{name}.log").open("ab")
            with log:
                command = [sys.executable, "-c", _LAUNCH, name, str(self.folder)]
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder))
        try:
            for port in self._ports.values():
                self._wait_for(port)
        except BaseException:
            self.kill()
            raise

    def kill(self) -> None:
        """Send SIGKILL to all of its processes."""
        for process in self._processes:
            process.kill()
            process.wait()
        self._processes.clear()

    def client(self) -> Any:
        return boto3.session.Session().client(
            "s3", endpoint_url=self.endpoint, region_name=REGION,
            aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}),
        )  # fmt: skip

    def upload(self, bucket: str, key: str, content: bytes) -> None:
        self.client().put_object(Bucket=bucket, Key=key, Body=content)

    def upload_folder(self, bucket: str, prefix: str, folder: Path) -> None:
        client = self.client()
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.upload_file(str(path), bucket, f"{prefix}/{path.relative_to(folder)}")

    def _configure(self) -> None:
        for name, port in self._ports.items():
            host = self._host if name == "proxy" else "127.0.0.1"
            config = (_DEFAULTS + (_PROXY if name == "proxy" else _STORAGE)).format(
                host=host, port=port, folder=self.folder, name=name
            )
            (self.folder / f"{name}-server.conf").write_text(config)
        (self.folder / "devices" / "d1").mkdir(parents=True)
        (self.folder / "swift.conf").write_text(_SWIFT_CONF)
        rings = [f"{name}={self._ports[name]}" for name in ("account", "container", "object")]
        subprocess.run([sys.executable, "-c", _RINGS, *rings], check=True, cwd=self.folder)

    def _wait_for(self, port: int) -> None:
        deadline = time.monotonic() + STARTS_WITHIN_S
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            dead = [process for process in self._processes if process.poll() is not None]
            logs = "".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.log"))
            assert not dead, f"Swift did not start: {logs}"
            assert time.monotonic() < deadline, f"Swift did not start in time: {logs}"
            time.sleep(0.02)


def client_environment(access_key: str, secret_key: str) -> dict[str, str]:
    """Variables that give boto3 these credentials and no others."""
    return {
        "AWS_ACCESS_KEY_ID": access_key,
        "AWS_SECRET_ACCESS_KEY": secret_key,
        "AWS_DEFAULT_REGION": REGION,
        **WITHOUT_CREDENTIALS,
    }


WITHOUT_CREDENTIALS = {
    "AWS_CONFIG_FILE": "/nonexistent",
    "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    "AWS_EC2_METADATA_DISABLED": "true",
}


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextlib.contextmanager
def running_swift(folder: Path, port: int = 0, host: str = "127.0.0.1") -> Iterator[Swift]:
    server = Swift(folder, port, host)
    server.start()
    try:
        yield server
    finally:
        server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description="A real S3 server for tests.")
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    options = parser.parse_args()
    options.dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with running_swift(options.dir.absolute(), options.port, options.host) as server:
        for name, value in server.environment.items():
            print(f"{name}={value}")
        print("ready", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main()
