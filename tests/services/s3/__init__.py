"""An S3 server of the tests' own: S3Proxy on a folder, resolved by Maven and run by Java.

It checks signatures and conditions of requests, and keeps its objects in files; a folder is a
bucket. Its conditions are not atomic, unlike Amazon's: tests of concurrent writers use other
stores.
"""

import subprocess
from pathlib import Path

import httpx

from tests.services import require
from tests.services.kafka import jars
from tests.services.service import Service, free_port

POM = Path(__file__).with_name("pom.xml")
REGION = "eu-test-1"
ACCESS_KEY = "replica"
SECRET = "secret-of-the-replicas"
BUCKET = "models"
_JVM_OPTIONS = ["-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
_LOGBACK = """\
<configuration>
  <appender name="stderr" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %level %logger{20} %msg%n</pattern></encoder>
  </appender>
  <root level="warn"><appender-ref ref="stderr"/></root>
</configuration>
"""


class RealS3(Service):
    """Run S3Proxy; every object that it acknowledged outlives a kill."""

    def __init__(self, folder: Path, java: str, classpath: str) -> None:
        super().__init__("s3", folder)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.data = folder / "data"
        (folder / "logback.xml").write_text(_LOGBACK)
        log = f"-Dlogback.configurationFile={folder / 'logback.xml'}"
        self._java = [java, *_JVM_OPTIONS, log, "-cp", classpath, "org.gaul.s3proxy.Main"]
        self._settings = folder / "s3proxy.properties"
        settings = {
            "s3proxy.endpoint": self.url,
            "s3proxy.authorization": "aws-v4",
            "s3proxy.identity": ACCESS_KEY,
            "s3proxy.credential": SECRET,
            "jclouds.provider": "filesystem-nio2",
            "jclouds.filesystem.basedir": str(self.data),
        }
        self._settings.write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
        self.data.mkdir(mode=0o700)
        (self.data / BUCKET).mkdir(mode=0o700)  # a bucket that others may read is public

    def environment(self, prefix: str = "") -> dict[str, str]:
        """Return the settings of a replica that keeps its objects below `prefix`."""
        return {
            "OBJECT_STORE": f"s3://{BUCKET}/{prefix}",
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": REGION,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
        }

    def objects(self, prefix: str) -> Path:
        """Return the folder of the objects below `prefix`."""
        return self.data / BUCKET / prefix

    def command(self) -> list[str]:
        """Give the command line."""
        return [*self._java, "--properties", str(self._settings)]

    def is_ready(self) -> bool:
        """Tell whether it answers a request, which it refuses without a signature."""
        try:
            return httpx.get(self.url, timeout=1).status_code == 403
        except httpx.HTTPError:
            return False


def real_s3(folder: Path) -> RealS3:
    """Describe a server in `folder`, not yet started, or skip."""
    try:
        return RealS3(folder, jars.java(), jars.classpath(POM))
    except (jars.JarsMissingError, subprocess.SubprocessError) as missing:
        require(f"the S3 server cannot run: {missing}")
