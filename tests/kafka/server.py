"""A real Apache Kafka for tests, without Docker: the server's jars from Maven, in KRaft mode.

One process is broker and controller. It listens on loopback only: one listener without any
protection, whose clients are administrators, and one with TLS and SASL, whose clients may do what
their ACLs say. What is there is enough for three replicas less than production has; all else is
Apache Kafka as it is.
"""

from __future__ import annotations

import base64
import fcntl
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

ROOT = Path(__file__).parents[2]
POM = Path(__file__).with_name("pom.xml")
JARS = ROOT / "build" / "kafka"
_FETCH_S: Final = 300
_START_S: Final = 60.0
_STOP_S: Final = 15.0
USERS: Final = (
    "gateway",
    "pseudonymizer",
    "forwarder-heap",
    "forwarder-sentry",
    "operator",
    "admin",
)


def password_of(user: str) -> str:
    """Give the password of a user of the protected listener; it opens nothing else."""
    return f"test-{user}-{'x' * 8}"


def lacking() -> str:
    """Say what this machine lacks to run Kafka; empty if nothing."""
    for tool in ("java", "mvn"):
        if shutil.which(tool) is None:
            return f"no {tool} on this machine"
    return ""


def fetch_jars() -> Path:
    """Have Maven put the jars into build/, once for each version; several processes may ask."""
    JARS.parent.mkdir(exist_ok=True)
    mark = JARS / "pom.xml"
    with (JARS.parent / "kafka.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if mark.exists() and mark.read_bytes() == POM.read_bytes():
            return JARS
        shutil.rmtree(JARS, ignore_errors=True)
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies"]
        command += [f"-DoutputDirectory={JARS}", "-DincludeScope=runtime"]
        done = subprocess.run(  # noqa: S603 - our own command
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_FETCH_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"Maven cannot fetch Kafka: {done.stdout.decode()[-2000:]}")
        mark.write_bytes(POM.read_bytes())
    return JARS


def _free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def make_certificates(folder: Path, *, host: str = "127.0.0.1") -> tuple[Path, Path]:
    """Make an authority and a server's certificate for a host; give the paths of both (PEM)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    now = datetime.now(UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

    def certificate(subject: str, public: Any, extension: Any, *, critical: bool) -> Any:
        builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("tests"))
        builder = builder.public_key(public).serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(now - timedelta(hours=1))
        builder = builder.not_valid_after(now + timedelta(days=1))
        return builder.add_extension(extension, critical=critical).sign(
            authority_key, hashes.SHA256()
        )

    basic = x509.BasicConstraints(ca=True, path_length=0)
    authority = certificate("tests", authority_key.public_key(), basic, critical=True)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    server = certificate("kafka", key.public_key(), names, critical=False)
    pem = serialization.Encoding.PEM
    ca_path, server_path = folder / "ca.pem", folder / "server.pem"
    ca_path.write_bytes(authority.public_bytes(pem))
    plain = serialization.NoEncryption()
    server_path.write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
        + server.public_bytes(pem)
        + authority.public_bytes(pem)
    )
    server_path.chmod(0o600)
    return ca_path, server_path


def unsecured_token(subject: str, *, life_s: int = 600) -> str:
    """Make a JSON web token without a signature, which a broker of tests takes for an identity."""

    def part(value: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()

    now = int(time.time())
    claims = {"sub": subject, "iat": now, "exp": now + life_s, "scope": "kafka"}
    return f"{part({'alg': 'none'})}.{part(claims)}."


class KafkaServer:
    """One Kafka on loopback. Use as context manager; its data dies with it.

    Attributes:
        bootstrap: ``host:port`` without protection; whoever connects is administrator.
        secure: ``host:port`` with TLS and SASL. ca: The authority to trust there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        plain, controller, secure = _free_ports(3)
        self.bootstrap, self.secure = f"127.0.0.1:{plain}", f"127.0.0.1:{secure}"
        self.ca, server = make_certificates(folder)
        self._classes = str(fetch_jars() / "*")
        self._port = plain
        self._process: subprocess.Popen[bytes] | None = None
        self.data = folder / "data"
        scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        bearer = (
            "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required "
            'unsecuredLoginStringClaim_sub="broker";'
        )
        settings = {
            "process.roles": "broker,controller",
            "node.id": "1",
            "controller.quorum.bootstrap.servers": f"127.0.0.1:{controller}",
            "listeners": f"PLAIN://127.0.0.1:{plain},CONTROLLER://127.0.0.1:{controller}"
            f",SECURE://127.0.0.1:{secure}",
            "advertised.listeners": f"PLAIN://{self.bootstrap},SECURE://{self.secure}",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAIN",
            "listener.security.protocol.map": "PLAIN:PLAINTEXT,CONTROLLER:PLAINTEXT,"
            "SECURE:SASL_SSL",
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,"
            "OAUTHBEARER",
            "listener.name.secure.scram-sha-256.sasl.jaas.config": scram,
            "listener.name.secure.scram-sha-512.sasl.jaas.config": scram,
            "listener.name.secure.oauthbearer.sasl.jaas.config": bearer,
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": str(server),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS;User:admin",
            "log.dirs": str(self.data),
            "auto.create.topics.enable": "false",
            "offsets.topic.num.partitions": "2",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            "group.min.session.timeout.ms": "1000",
            "log.cleaner.dedupe.buffer.size": str(4 * 1024**2),
            "num.network.threads": "2",
            "num.io.threads": "2",
        }
        self._settings = folder / "server.properties"
        self._settings.write_text("".join(f"{k}={v}\n" for k, v in settings.items()), "utf-8")
        (folder / "log4j2.properties").write_text(
            "status=error\nrootLogger.level=warn\nrootLogger.appenderRefs=out\n"
            "rootLogger.appenderRef.out.ref=out\nappender.out.type=Console\nappender.out.name=out\n"
            "appender.out.layout.type=PatternLayout\nappender.out.layout.pattern=%d %p %c %m%n\n",
            "utf-8",
        )

    def _java(self, *arguments: str) -> list[str]:
        # The smallest heap that carries it, one thread for the compiler: others use the machine.
        options = ["-Xms64m", "-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        log = f"-Dlog4j2.configurationFile={self._folder / 'log4j2.properties'}"
        return ["java", *options, log, "-cp", self._classes, *arguments]

    def __enter__(self) -> Self:
        scram = [
            word
            for user in USERS
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for word in ("--add-scram", f"{mechanism}=[name={user},password={password_of(user)}]")
        ]
        identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        if identity.startswith("-"):
            identity = f"A{identity[1:]}"
        command = self._java("kafka.tools.StorageTool", "format", "--standalone", "-t", identity)
        done = subprocess.run(  # noqa: S603 - our own command
            [*command, "-c", str(self._settings), *scram],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_START_S,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"Kafka cannot be set up: {(done.stdout + done.stderr)[-2000:]!r}")
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it on the data that is there; return when it takes connections."""
        with (self._folder / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                self._java("kafka.Kafka", str(self._settings)),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), 0.2).close()
            except OSError:
                time.sleep(0.1)
            else:
                return
        self.kill()
        raise RuntimeError(f"Kafka does not start: {self.output()[-3000:]}")

    def stop(self) -> None:
        """Ask it to end, by its own process id; make it if it does not."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def kill(self) -> None:
        """End it as a power cut does, but for what the operating system has."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process is not None
        return self._process.pid

    def output(self) -> str:
        """Give what it has printed."""
        path = self._folder / "output.txt"
        return path.read_text("utf-8", "replace") if path.exists() else ""


def given() -> str:
    """Address of a broker that is there already, without protection; empty if none is named."""
    return os.environ.get("TELEMETRY_KAFKA_BOOTSTRAP", "")
