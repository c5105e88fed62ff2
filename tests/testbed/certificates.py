"""The cluster's own certificate authority, made with openssl for one start and then thrown away."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.testbed.packages import program

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
# An empty configuration: every extension is said on the command line.
_CONFIGURATION = "[req]\ndistinguished_name = name\n[name]\n"


@dataclass(frozen=True)
class Certificate:
    """A certificate and its key, as PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs what the cluster's programs and users show to each other."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._configuration = folder / "openssl.cnf"
        self._configuration.write_text(_CONFIGURATION)
        self._made = 0
        self.root = self._certificate(
            "ca", "/CN=kubequant test bed", ["basicConstraints=critical,CA:TRUE"]
        )
        self.token_key = folder / "token.key"
        _openssl(
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-out",
            self.token_key,
        )
        self.token_public_key = folder / "token.pub"
        _openssl("pkey", "-in", self.token_key, "-pubout", "-out", self.token_public_key)

    def server(self, name: str, addresses: Sequence[str]) -> Certificate:
        """Return a certificate for a server that answers on `addresses`, like `DNS:localhost`."""
        names = f"subjectAltName={','.join(addresses)}"
        return self._signed(name, f"/CN={name}", [names, "extendedKeyUsage=serverAuth"])

    def client(self, user: str, groups: Sequence[str] = ()) -> Certificate:
        """Return a certificate that the API server reads as `user` in `groups`."""
        subject = "".join(f"/O={group}" for group in groups) + f"/CN={user}"
        self._made += 1
        return self._signed(f"client-{self._made}", subject, ["extendedKeyUsage=clientAuth"])

    def _signed(self, name: str, subject: str, extensions: list[str]) -> Certificate:
        signer = ["-CA", str(self.root.certificate), "-CAkey", str(self.root.key)]
        return self._certificate(
            name, subject, ["basicConstraints=critical,CA:FALSE", *extensions], signer
        )

    def _certificate(
        self, name: str, subject: str, extensions: list[str], signer: Sequence[str] = ()
    ) -> Certificate:
        made = Certificate(self.folder / f"{name}.crt", self.folder / f"{name}.key")
        words = [
            "req",
            "-x509",
            *_KEY,
            "-config",
            self._configuration,
            "-days",
            "30",
            "-subj",
            subject,
        ]
        for extension in extensions:
            words += ["-addext", extension]
        _openssl(*words, *signer, "-keyout", made.key, "-out", made.certificate)
        return made


def _openssl(*words: str | Path) -> None:
    command = [program("openssl") or "openssl", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"openssl {words[0]} failed:\n{done.stderr}")
